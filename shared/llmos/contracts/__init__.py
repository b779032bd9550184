"""What travels on the bus: one module a noun, msgspec Structs, JSON on the wire.

Unknown fields are ignored and new fields have defaults, so that an older and a newer service understand each other.
"""
