"""Objects of S3 that a job spec names as `s3://bucket/key`: one object, or all below a prefix."""

from collections.abc import Mapping
from pathlib import Path
from threading import Event

from llmos.artifacts_content import check_paths, new_file, write_chunks
from llmos.artifacts_s3 import S3Store, connect, problems, read_object
from llmos.errors import Fatal, NotFound, Rejected


def fetch_objects(env: Mapping[str, str], store: object, bucket: str, key: str, dest: Path, stopped: Event) -> Path:
    """Bring the object `key` to the file `dest/<its last name>`, or every object below `key/` into `dest`.

    `dest` must be an empty directory. Returns the file or the directory. Objects of the artifact store `store` are
    refused: listing them would show every tenant's artifacts. A bucket that these credentials may not read is the
    sender's fault here: `Rejected`.
    """
    if isinstance(store, S3Store) and store.holds(bucket, key):
        raise Rejected(
            f"s3://{bucket}/{key} belongs to the artifact store", remedy="Name an artifact as artifact:sha256:…."
        )
    client = connect(env)

    def bring(key: str, path: str) -> Path:
        check_paths([path])
        target = dest / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_file(target.parent) as (unfinished, sink):
            write_chunks(read_object(client, bucket, key, stopped), sink)
            sink.flush()
            unfinished.replace(target)
        return target

    try:
        with problems(f"s3://{bucket}/{key}"):
            if not key.endswith("/"):
                try:
                    return bring(key, key.rpartition("/")[2])
                except NotFound:
                    pass  # then it may be a prefix
            prefix = f"{key.rstrip('/')}/"
            keys = [item.object_name or "" for item in client.list_objects(bucket, prefix, recursive=True)]
            paths = [name.removeprefix(prefix) for name in keys if not name.endswith("/")]
            if not paths:
                raise NotFound(f"there is no object s3://{bucket}/{key}", remedy="Look at the bucket and the key.")
            check_paths(paths)
            for path in paths:
                bring(prefix + path, path)
            return dest
    except Fatal as error:
        raise Rejected(error.problem.message, remedy=error.problem.remedy) from error
