from shelf.report import shortened, table


def test_columns_line_up():
    assert table([["a", "long"], ["longer", "b"]]) == "a       long\nlonger  b"


def test_long_texts_are_cut():
    assert shortened("The Hobbit", 10) == "The Hobbit"
    assert shortened("The Hobbits", 10) == "The Hob..."
