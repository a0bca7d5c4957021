"""Words that the sample crawl is written with."""

from collections.abc import Mapping

# topic -> (nouns, verbs in the past, adjectives)
TOPICS: Mapping[str, tuple[str, str, str]] = {
    "science": (
        "telescope molecule experiment enzyme glacier isotope laboratory neuron orbit particle hypothesis microscope fossil magnet "
        "bacterium spectrum reactor membrane comet genome crystal vaccine satellite sediment catalyst",
        "measured observed predicted isolated explained recorded modelled cooled heated classified detected sampled tested",
        "precise stable radioactive molecular distant thermal organic soluble luminous dense measurable inert",
    ),
    "history": (
        "castle treaty merchant harbour dynasty charter bishop regiment manuscript parliament fortress pilgrim archive guild "
        "emperor siege colony abbey chronicle rebellion senator kingdom market tapestry coin",
        "founded conquered signed inherited besieged crowned exiled taxed restored copied defended governed abandoned",
        "medieval royal forgotten loyal fortified ancient ruined provincial sacred wealthy imperial rural",
    ),
    "cooking": (
        "onion oven dough broth saucepan lentil pepper basil knife butter mushroom pastry recipe vinegar garlic skillet noodle "
        "cinnamon barley stew pumpkin yoghurt chestnut ladle crust",
        "simmered chopped baked stirred seasoned roasted kneaded peeled poured grilled served tasted warmed",
        "tender salty crisp bitter fragrant creamy smoky ripe sour buttery golden spicy",
    ),
    "travel": (
        "ferry valley hostel mountain station border village canyon beach lighthouse compass island bridge trail passport desert "
        "market river cabin waterfall tram museum suitcase lagoon plateau",
        "crossed visited climbed reached explored followed photographed passed toured circled mapped left booked",
        "remote coastal snowy narrow scenic muddy tropical crowded sheltered steep volcanic quiet",
    ),
    "entertainment": (
        "actor concert album premiere celebrity festival director comedy soundtrack studio audience trailer drama singer award "
        "screen guitarist episode script sequel costume rehearsal theatre fan ticket",
        "released performed praised filmed cancelled produced applauded announced rehearsed recorded cast reviewed toured",
        "famous dramatic funny glamorous popular theatrical catchy live scandalous animated acclaimed upcoming",
    ),
}
PLACES = (
    "Arlen Boswick Carrow Dunmore Eastvale Farrowby Glenholt Harwick Inverlea Jesmond Kestrel Langford Marwood Northam Oakham "
    "Penrith Quarley Redmire Selwick Tarrant Ulverton Vexford Westerly Yarrow"
)
PEOPLE = (
    "Abbott Barlow Chandra Dalton Ekberg Fontaine Greaves Hollis Iqbal Jansen Kovacs Lindqvist Moreau Novak Okafor Pereira Quiroga "
    "Rossi Sato Turner Ueda Vargas Whitfield Yilmaz"
)
OPENINGS = (
    "However Later Meanwhile Moreover Afterwards Eventually Besides Nevertheless Soon Today Yesterday Often Sometimes Perhaps "
    "Still Instead Consequently Likewise Rarely Traditionally"
)
MANNERS = (
    "slowly carefully again together twice quietly suddenly patiently yearly secretly openly early everywhere abroad reluctantly"
)
# What a sentence is made of: N noun, V verb, A adjective, P place, H person, O opening, M manner, D number.
PATTERNS = (
    "The A N V the N.",
    "O, the N V this A N M.",
    "H V the A N in P.",
    "In P the N was more A than the N.",
    "O H and H V the N M.",
    "The N of P V D A N pairs.",
    "Nobody in P had V such an A N.",
    "When the N V the N, H left P M.",
    "One A N is rarely as A as its N.",
    "O, every N that H V was A.",
    "They V the N and the N, but not the A N.",
    "H has V D N lists since the N came to P.",
    "To see the N one has to pass the A N of P.",
    "It was with the N that H first V a N.",
    "O the A N and its N were V by H.",
)
SPAM_PATTERNS = (
    "Buy cheap N online, A N shipping free.",
    "Click here for A N deals and save D percent.",
    "Best N price, top rated N, A offer today.",
    "You won a A N bonus, claim code N now.",
    "Limited A offer: N and N bundle guaranteed.",
    "Make N money fast with A N secrets.",
    "Order D N units and get N delivery free.",
    "Subscribe to N alerts, the A discount ends today.",
)
LOG_PATTERNS = (
    "worker N could not open the file N because the device is busy and the request will be tried again",
    "request by user N failed in module N with a timeout while waiting for the lock to be released",
    "warning from service N that the cache of host N is full and the oldest entries have been removed",
)
# Invented words in the place of real ones; a corpus brings its own list.
DIRTY = "smutterly filthonk crudwick lewdon nastrel vulgaroo obscenix"
# Pseudo-English is put together from these.
SYLLABLES = (
    "bran crel dron fel gorm hast jin kel lorn mard nist plor quen ralt sper trun vand welk yorn zim blat chor drev fristle",
    "a e i o u ar er in on el ith",
    "ing ed ness ment ly ish er able ance ous ity ward",
)
# Other languages: sentences with ordinary words in the slots.
FOREIGN: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "de": (
        "Garten Fluss Brücke Bahnhof Kirche Schule Wald Straße Küche Fenster Bäcker Nachbar Zeitung Winter Sommer Abend Regen Berg "
        "Dorf Markt",
        (
            "Der alte N steht seit vielen Jahren neben dem N und wird kaum noch benutzt.",
            "Am nächsten Morgen ging sie mit dem N zum N, obwohl es noch dunkel war.",
            "Niemand wusste genau, warum der N so nahe am N gebaut worden war.",
            "Wir haben den N gesehen, aber nicht den N, von dem alle gesprochen hatten.",
        ),
    ),
    "fr": (
        "jardin fleuve pont marché quartier village chemin bureau château printemps matin voisin journal théâtre musée repas train "
        "livre soleil bateau",
        (
            "Le vieux N se trouve depuis longtemps près du N et personne ne l'utilise plus.",
            "Le lendemain, elle est allée du N jusqu'au N parce qu'il faisait encore nuit.",
            "On ne savait pas pourquoi le N avait été construit si près du N.",
            "Nous avons vu le N, mais pas le N dont tout le monde parlait.",
        ),
    ),
    "es": (
        "jardín río puente mercado barrio pueblo camino castillo invierno verano vecino periódico teatro museo tren libro barco "
        "cielo árbol reloj",
        (
            "El viejo N está desde hace muchos años junto al N y casi nadie lo utiliza.",
            "A la mañana siguiente ella fue del N al N aunque todavía era de noche.",
            "Nadie sabía exactamente por qué el N se había construido tan cerca del N.",
            "Hemos visto el N, pero no el N del que todos hablaban aquella tarde.",
        ),
    ),
}
# Benchmark items are made of these alone, so that prose doesn't hit them by chance.
BENCHMARK_NOUNS = (
    "abacus lantern walrus pendulum zeppelin thimble sextant harpsichord turnip ocarina gondola marmot parasol cobbler juggler "
    "monocle beetroot sundial falcon wheelbarrow"
)
BENCHMARK_PATTERNS = (
    "If seven N carry nine N across D bridges, how many N does the last N keep when every second N is lost?",
    "Which N weighs more than D N put together, given that each N equals half of one N and no N is hollow?",
    "A N leaves port at D and a N follows twice as fast; where will both N meet the third N again?",
)
COMMON_PHRASES = ("at the end of the day", "for the first time in years", "one of the most important things")
