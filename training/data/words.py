"""Words, names and invented words; a part of each is held out of training and met only in evaluation."""

from __future__ import annotations

import random
import zlib

NOUNS = """account address album alarm animal answer apple appointment archive article artist asset backup badge bag
balance bank basket battery bike bill bird board boat bonus book border bottle box branch bridge budget building bus
button cable calendar camera campaign candle car card carpet case cat category chair channel chapter chart cheque city
claim class client clock cloud coach coat code coffee color column comment company concert contact contract copy course
coupon credit crew cup customer cycle database deal debt delivery desk device diet dish doctor document dog domain door
draft drawing dream driver drug duty engine entry error estate event exam exhibit factory farm fee field file film filter
finger fire fish flag flight floor flower folder forest forecast form frame friend fund game garage garden gate gift glass
goal grade graph group guest guide habit hall harbor hat highway hobby home horse hospital hotel house ice idea image
index insect insurance inventory invoice island item jacket job journal journey judge juice key kitchen label lab lake
lamp language lease lesson letter library license light line link list loan location lock log loss machine magazine mail
map market match meal measure medal meeting member memo menu message metal meter mirror mission model module money
monitor month mountain movie museum music network note notice number nurse object offer office oil order outlet oven
owner package page paint palace paper park parcel partner passport password patient payment pen pension permit person
pet phone photo piano picture pipe plan plane planet plant plate player playlist podcast poem point policy pool port
portfolio post poster price printer prize product profile program project property proposal puzzle quality query quest
question queue quote radio rank rate receipt recipe record refund region reminder rental repair report request review
reward ring river road robot role room route rule salary sale sample scale schedule school score screen season seat
section sensor server service session shelf ship shirt shoe shop show signal site skill sound source space speech sport
stage stamp station statue stock stone store storm story street student studio subject supplier survey switch symbol
system table tag tank target task tax taxi teacher team template temperature tenant term test text theater theme ticket
tile timer title token tool topic tour tower town toy track trade traffic trailer train transfer trend trial trip truck
tunnel tutor unit upload user vacation valley value vehicle vendor version video village visit voice volume vote voucher
wallet warehouse watch water weather website wheel window wine winner word worker workshop zone""".split()

ADJECTIVES = """active annual basic big blue bold brave bright broken calm cheap clean clear cold cool daily dark deep
dry early easy empty extra fast final fine first flat free fresh full gentle global gold good grand gray great green
happy hard heavy hidden high hot huge junior large last late lazy light little local long loud lucky main major minor
modern monthly narrow new nice noisy old open orange pink plain pretty private proud public pure purple quick quiet rare
red regular rich round royal rude safe secret senior shared sharp short silent silver simple slow small smart smooth soft
solid special spring square strong summer sunny sweet tall tiny total tough urgent warm weekly white wide wild winter
wise yellow young""".split()

FIRST_NAMES = """Adam Aisha Alice Amir Anna Antonio Ava Ben Bruno Carla Carlos Chen Clara Daniel Diana Elena Emma Erik
Eva Fatima Felix Fiona Frank George Grace Hana Hannah Hugo Ian Igor Ines Irene Ivan Jack James Jane Jin Joana John Jonas
Julia Kai Karim Kate Kenji Lara Laura Leo Lena Liam Lina Lisa Louis Lucas Lucy Maria Marta Max Maya Mei Mia Michael Mila
Mona Nadia Nina Noah Nora Olga Oliver Omar Oscar Paul Pedro Peter Priya Rachel Ravi Rosa Sam Sara Simon Sofia Stefan
Susan Tara Theo Thomas Tim Tom Uma Vera Victor Yara Yuki Zoe""".split()
LAST_NAMES = """Adams Allen Baker Bauer Bell Brown Carter Clark Costa Cruz Davis Diaz Evans Fischer Garcia Gray Green
Hall Harris Hill Hughes Ito Jones Khan Kim King Kumar Lee Lewis Lopez Martin Miller Moore Nguyen Novak Park Patel Perez
Ricci Rossi Schmidt Silva Singh Smith Sato Stone Tanaka Taylor Turner Wagner Walker Wang Weber White Wilson Wood Wright
Young""".split()

CITIES = """Accra Amsterdam Athens Austin Baghdad Bangkok Barcelona Beijing Belgrade Berlin Bern Bogota Boston Brussels
Budapest Cairo Chicago Copenhagen Dallas Delhi Denver Dubai Dublin Edinburgh Florence Frankfurt Geneva Hamburg Hanoi
Helsinki Istanbul Jakarta Karachi Kiev Kyoto Lagos Lima Lisbon London Lyon Madrid Manila Melbourne Miami Milan Montreal
Moscow Mumbai Munich Nairobi Naples Nice Osaka Oslo Ottawa Paris Perth Porto Prague Quito Riga Rome Santiago Seattle
Seoul Seville Shanghai Singapore Sofia Stockholm Sydney Tallinn Tokyo Toronto Tunis Valencia Vancouver Venice Vienna
Vilnius Warsaw Zagreb Zurich""".split()

_ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr kl pl pr sk sl st tr th sh ch".split()
_VOWELS = "a e i o u ai ea io ou".split()
_CODAS = ["", "", "", "l", "n", "r", "s", "t", "m", "x", "k", "nd", "rk", "lt"]

_FRAGMENTS = """the ing ion ent her for tha int ere tio ter est ers ati hat ate all ver his ith res ont can get use per mat
type suc wee new my fir er an hi com pro dis ten tic ous ble ful ness ment age ity ive ize ant ard ick ock uck ash esh ish
oth uth ight ound ough own own eed eel een eep eer eet ood ook ool oom oon oop ail ain air ait awn ead eak eal eam ean""".split()
_ACCENTS = tuple(
    "áàâäãåæçéèêëęíìîïıłñńóòôöõøœßśšúùûüýźżžčğřşțāēīōūđÁÉÖÜÇÑØŁŠŽабвгдежзиклмнопрстуфхчшыэюяαβγδελμνοπρστω中国日本"
)


class Words:
    """Draws words from one side of the train/held-out border."""

    def __init__(self, rng: random.Random, *, held_out: bool, strange: float = 0.0) -> None:
        self.rng = rng
        self.held_out = held_out
        self.strange = strange
        self.nouns = [word for word in NOUNS if is_held_out(word) == held_out]
        self.adjectives = [word for word in ADJECTIVES if is_held_out(word) == held_out]
        self.first_names = [word for word in FIRST_NAMES if is_held_out(word) == held_out]
        self.last_names = [word for word in LAST_NAMES if is_held_out(word) == held_out]
        self.cities = [word for word in CITIES if is_held_out(word) == held_out]

    def invented(self) -> str:
        """A pronounceable word nobody has seen, of two or three syllables."""
        while True:
            if self.strange and self.rng.random() < self.strange:
                word = self._strange()
            else:
                syllables = self.rng.choice((1, 2, 2, 2, 3))
                word = "".join(self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS) for _ in range(syllables))
                word += self.rng.choice(_CODAS)
            if len(word) > 2 and is_held_out(word) == self.held_out:
                return word

    def _strange(self) -> str:
        """Letters that other words lack: fragments of English, any letters at all, accents, capitals."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.5:
            return "".join(rng.choice(_FRAGMENTS) for _ in range(rng.choice((1, 2, 2, 3))))
        if kind < 0.7:
            return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8)))
        if kind < 0.8:
            return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(3, 5)))
        word = rng.choice((*self.nouns, *self.first_names, *self.cities))
        at = rng.randrange(len(word))
        return word[:at] + rng.choice(_ACCENTS) + word[at + 1 :]

    def noun(self, invented: float = 0.3) -> str:
        return self.invented() if self.rng.random() < invented else self.rng.choice(self.nouns)

    def adjective(self) -> str:
        return self.rng.choice(self.adjectives)

    def any_word(self) -> str:
        return self.rng.choice((self.invented, self.noun, self.adjective))()

    def first_name(self) -> str:
        return self.invented().capitalize() if self.rng.random() < 0.25 else self.rng.choice(self.first_names)

    def last_name(self) -> str:
        return self.invented().capitalize() if self.rng.random() < 0.25 else self.rng.choice(self.last_names)

    def city(self) -> str:
        return self.invented().capitalize() if self.rng.random() < 0.25 else self.rng.choice(self.cities)


def is_held_out(word: str) -> bool:
    """A fixed tenth of all words, the same on every machine."""
    return zlib.crc32(word.lower().encode()) % 10 == 0
