"""Rows of preference data, written by hand."""

import gzip
import json

HELLO = "\n\nHuman: Hello\n\nAssistant:"
LONGER = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: How are you?\n\nAssistant:"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def row(chosen, rejected, **others):
    return {"chosen": chosen, "rejected": rejected, **others}


GOOD = row(HELLO + " Hi!", HELLO + " Go away.")


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(entry) + "\n" for entry in rows).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path
