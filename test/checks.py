"""What the tests in Python share: checks that are counted, and the line that test/run.py reads."""
passed = failed = skipped = 0


def check(condition, *message):
    """One check. What failed is said, of many the first 20."""
    global passed, failed
    passed, failed = passed + bool(condition), failed + (not condition)
    if not condition and failed <= 20:
        print("failed: " + " ".join(map(str, message))[:800].encode("utf-8", "backslashreplace").decode())


def skip(*why):
    global skipped
    skipped += 1
    print("skipped:", *why)


def finish():
    """The last line, and the exit code: nothing checked is no success."""
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
    return 1 if failed or not passed + skipped else 0
