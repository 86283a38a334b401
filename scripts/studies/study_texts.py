"""The texts of the extrapolation study: novels, and passages of them in which a key is hidden and asked for.

The keys are worded exactly as those of `attn retrieval --tasks passkey`, so that a small model learns the task at its trained length;
the study measures at how much longer lengths it can still do the task.
"""

import random

NOVELS = ["sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey"]
HELD_OUT = "persuasion"
# About how many characters a token of the study's tokenizer has.
BYTES_PER_TOKEN = 3
# Characters of novel around a key; together with the words of the task this is about a sequence of 256 tokens.
LONGEST_PASSAGE = 420

OPENING = ("There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
           "I will quiz you about the important information there.\n")
NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is {key}.\n\n"


def passage(rng, novels, length):
    """About `length` characters of a novel, between two words."""
    novel = novels[rng.randrange(len(novels))]
    start = rng.randrange(len(novel) - length - 200)
    start = novel.index(" ", start) + 1
    end = novel.index(" ", start + length)
    return " ".join(novel[start:end].split())


def with_keys(rng, novels, size):
    """Passages with one key each, at a random depth, of about `size` characters in all."""
    parts, made = [], 0
    while made < size:
        length = rng.randrange(LONGEST_PASSAGE)
        before = int(length * rng.random())
        key = f"{rng.randrange(10**5):05}"
        text = (OPENING + passage(rng, novels, before) + NEEDLE.format(key=key) + passage(rng, novels, length - before)
                + QUESTION.format(key=key))
        parts.append(text)
        made += len(text)
    return "".join(parts)


def write_once(path, make):
    """Writes what `make` returns, unless the file is there; a file that is there is whole."""
    if not path.exists():
        path.with_suffix(".partial").write_text(make(), encoding="utf-8")
        path.with_suffix(".partial").rename(path)
    return path


def prepare(folder, texts, tokens, share, seed=0):
    """Writes the files to train on and returns them: the novels, as often as it takes, and passages with keys that are `share` of
    a run of `tokens`."""
    novels = [(texts / f"{novel}.txt").read_text(encoding="utf-8") for novel in NOVELS]
    size = tokens * BYTES_PER_TOKEN
    times = max(1, round(size * (1 - share) / sum(map(len, novels))))
    files = [write_once(folder / "novels.txt", lambda: "\n\n".join(novels * times))]
    if share > 0:
        files.append(write_once(folder / "keys.txt", lambda: with_keys(random.Random(seed), novels, int(size * share))))
    return files
