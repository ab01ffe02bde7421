from shelf.queue import Reservations


def test_first_come_first_served():
    waiting = Reservations()
    assert [waiting.add("1", name) for name in ("ada", "bob", "ada")] == [1, 2, 1]
    assert [waiting.next("1") for _ in range(3)] == ["ada", "bob", None]


def test_who_does_not_want_it_any_more():
    waiting = Reservations()
    waiting.add("1", "ada")
    waiting.add("1", "bob")
    assert waiting.drop("1", "ada")
    assert not waiting.drop("1", "ada")
    assert waiting.next("1") == "bob"
