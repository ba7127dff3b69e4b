"""On which line each key of a TOML text stands."""

from conch.cron.toml_lines import lines_of

TEXT = '''set = "x"  # [no.header]
[job.a]
cmd = [
  "sh", # retries = 1
  "[b]",
]
env = {A = "1", B = "2"}
note = """
[job.fake]
tz = "no"
"""

  [ job . "b.c" ]
env.LANG = 'C'
"run-ttl" = 5
[job.b.env]
X = "\\u2028 \u2028 \u0085"
Y = "1"
'''


def test_each_key_has_the_line_on_which_its_statement_begins() -> None:
    """What only looks like a key, in texts, lists and comments, is none."""
    assert lines_of(TEXT) == {
        ("set",): 1,
        ("job",): 2,
        ("job", "a"): 2,
        ("job", "a", "cmd"): 3,
        ("job", "a", "env"): 7,
        ("job", "a", "env", "A"): 7,
        ("job", "a", "env", "B"): 7,
        ("job", "a", "note"): 8,
        ("job", "b.c"): 13,
        ("job", "b.c", "env"): 14,
        ("job", "b.c", "env", "LANG"): 14,
        ("job", "b.c", "run-ttl"): 15,
        ("job", "b"): 16,
        ("job", "b", "env"): 16,
        ("job", "b", "env", "X"): 17,
        ("job", "b", "env", "Y"): 18,
    }


def test_lines_of_tables_in_lists() -> None:
    assert lines_of("[[a.b]]\nx = 1\r\n[[a.b]]\nx = 2\n") == {("a",): 1, ("a", "b"): 1, ("a", "b", "x"): 2}
