"""The vault's settings."""

from pathlib import Path

from llmos.service import ServiceConfig


class VaultConfig(ServiceConfig, frozen=True, kw_only=True):
    """Set by `LLMOS_<FIELD>` or the section `[vault]`.

    `root_key_file` is where the root key lies; by default `<data_dir>/vault/root.key`, made on the first start. A file
    that is named (a mounted secret) must be there, unless `create_root` says that it may be made. `signing_key` is the
    name of the key that signs; a new name makes a new key, and the old ones stay trusted. `trust_file` gets the public
    keys (default `<data_dir>/trusted_keys.json`).
    """

    root_key_file: Path | None = None
    create_root: bool = False
    signing_key: str = "main"
    trust_file: Path | None = None

    @property
    def root_key(self) -> Path:
        return self.root_key_file or self.data_dir / "vault" / "root.key"

    @property
    def may_create_root(self) -> bool:
        return self.create_root or self.root_key_file is None

    @property
    def trusted_keys(self) -> Path:
        return self.trust_file or self.data_dir / "trusted_keys.json"
