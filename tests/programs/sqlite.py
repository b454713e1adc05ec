"""The SQLite programs of tests/programs/sqlite.rs.

    sqlite.py write FILE JOURNAL SYNCHRONOUS FIRST   transactions; prints each number when committed
    sqlite.py count FILE TIMES                       adds one this many times, beside others
    sqlite.py check FILE                             integrity, then all numbers
    sqlite.py total FILE                             integrity, then the total
"""

import itertools
import sqlite3
import sys


def opened(path):
    # Seconds to wait for others' locks. Transactions are begun and ended by hand.
    return sqlite3.connect(path, timeout=60, isolation_level=None)


def write(path, journal, synchronous, first):
    database = opened(path)
    assert database.execute(f"PRAGMA journal_mode={journal}").fetchone()[0] == journal
    database.execute(f"PRAGMA synchronous={synchronous}")
    # So that checkpoints happen, and pages leave the cache before their transaction ends.
    database.execute("PRAGMA wal_autocheckpoint=50")
    database.execute("PRAGMA cache_size=20")
    database.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, text TEXT)")
    database.execute("CREATE TABLE IF NOT EXISTS counters (value INTEGER)")
    database.execute("CREATE INDEX IF NOT EXISTS by_text ON rows (text)")
    for number in itertools.count(int(first)):
        database.execute("BEGIN IMMEDIATE")
        text = f"{number}." * (1 + number * 7919 % 900)
        database.execute("INSERT INTO rows VALUES (?, ?)", (number, text))
        database.execute("UPDATE rows SET text = text || 'x' WHERE number = ?", (number // 2,))
        database.execute("COMMIT")
        print(number, flush=True)


def count(path, times):
    database = opened(path)
    # Reads through mmap data that others write by other means.
    database.execute("PRAGMA mmap_size=10000000")
    for _ in range(int(times)):
        database.execute("BEGIN IMMEDIATE")
        value = database.execute("SELECT value FROM counters").fetchone()[0]
        database.execute("UPDATE counters SET value = ?", (value + 1,))
        database.execute("COMMIT")


def whole(path):
    database = opened(path)
    problems = database.execute("PRAGMA integrity_check").fetchall()
    assert problems == [("ok",)], problems
    return database


def check(path):
    for (number, text) in whole(path).execute("SELECT number, text FROM rows ORDER BY number"):
        assert text.startswith(f"{number}."), (number, text)
        print(number)


def total(path):
    print(whole(path).execute("SELECT value FROM counters").fetchone()[0])


if __name__ == "__main__":
    {"write": write, "count": count, "check": check, "total": total}[sys.argv[1]](*sys.argv[2:])
