"""The settings of the stages that make a data set: words, search, fetch, clean."""

from typing import Annotated, Literal

from pydantic import Field

from pocketclip.recipe.kinds import Natural, Positive, Settings, Share


class WordsSettings(Settings):
    """Which words images are searched for."""

    dump: str = Field(
        "", description="a Wikipedia dump, pages-articles .xml or .xml.bz2; empty: the list of `wordfreq`"
    )
    minimum: Natural = Field(100, description="words are kept that occur more often than this in the dump")
    most: Positive = Field(100_000, description="at most so many words, the most frequent ones")
    nouns: str = Field(
        "",
        description="folder of WordNet's database (data.noun): keep only nouns that can be seen; empty: all words",
    )


class SearchSettings(Settings):
    """Where images are searched, and how many."""

    providers: tuple[Literal["unsplash", "openverse", "wikimedia"], ...] = Field(
        ("openverse", "wikimedia"), description="image services; unsplash needs a key in UNSPLASH_ACCESS_KEY"
    )
    images_per_word: Positive = Field(10_000, description="at most so many images a word and provider")
    longest_wait: Natural = Field(
        0, description="minutes to wait at a rate limit; where it lasts longer the search stops and says when to go on"
    )
    unsplash: str = Field("https://api.unsplash.com", description="where Unsplash's API is")
    openverse: str = Field("https://api.openverse.org", description="where Openverse's API is")
    wikimedia: str = Field("https://commons.wikimedia.org", description="where Wikimedia Commons' API is")


class FetchSettings(Settings):
    """How images are downloaded."""

    rows_per_shard: Positive = Field(10_000, description="rows tried for one shard; fewer if some fail")
    connections: Positive = Field(128, description="downloads at a time, in each worker process")
    connections_per_host: Positive = Field(16, description="of them to one host")
    timeout: Annotated[float, Field(gt=0)] = Field(
        20.0, description="seconds for one try, from connection to last byte"
    )
    retries: Natural = Field(
        2, description="further tries after a failure that may pass: time-out, 429, 5xx, connection"
    )
    backoff: Annotated[float, Field(ge=0)] = Field(1.0, description="seconds before the first retry; doubled each time")
    most_bytes: Positive = Field(30_000_000, description="largest file, bytes")
    most_pixels: Positive = Field(50_000_000, description="largest image, pixels, judged before it is decoded")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(90, description="of the JPEG in which resized images are kept")
    opt_out: bool = Field(True, description="honour X-Robots-Tag: noai, noimageai, noindex, noimageindex")
    allow_private: bool = Field(False, description="fetch from private, loopback and other local addresses as well")


class CleanSettings(Settings):
    """Which of the fetched rows are kept."""

    short_side: Natural = Field(
        64, description="smallest short side, pixels; never more than image.size, to which images were shrunk"
    )
    aspect: Annotated[float, Field(ge=1)] = Field(3.0, description="largest long side, in short sides")
    duplicates: Literal["near", "exact", "keep"] = Field(
        "near", description="drop what looks the same, only what is the same file, or none"
    )
    duplicate_distance: Annotated[int, Field(ge=0, le=15)] = Field(
        12, description="bits of 256 in which the perceptual hashes of near duplicates may differ"
    )
    benchmarks: tuple[str, ...] = Field(
        (), description="folders of shards, as `pocketclip pack` makes them, whose images must not be trained on"
    )
    most_words: Natural = Field(256, description="longest caption, words; 0: any")
    languages: tuple[str, ...] = Field(
        ("en",), description="captions that are surely in none of these languages are dropped; empty: none are"
    )
    boilerplate: bool = Field(True, description="drop captions that are file names, addresses, `untitled`, ...")
    balance: Natural = Field(
        0, description="keep about so many rows of each word in words.tsv, as MetaCLIP does with 20,000; 0: all rows"
    )
    test: Share = Field(0.0, description="share of the kept rows that become the split `test`")
