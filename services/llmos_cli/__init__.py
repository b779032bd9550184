"""The command line: `llmos up`, `llmos submit`, `llmos get`, …"""
