"""References: the grammar, both ways."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptergit.errors import UsageError
from adaptergit.reference import Reference, Source

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
HOSTS = st.from_regex(r"[a-z]{1,8}\.[a-z]{2,5}", fullmatch=True)
SOURCES = st.one_of(
    st.builds("{}/{}".format, NAMES, NAMES),
    st.builds("{}/{}/{}".format, HOSTS, NAMES, NAMES),
    st.builds("https://{}/{}/{}.git".format, HOSTS, NAMES, NAMES),
    st.builds("ssh://git@{}:2222/{}/{}".format, HOSTS, NAMES, NAMES),
    st.builds("git@{}:{}/{}.git".format, HOSTS, NAMES, NAMES),
    st.builds("file:///{}/{}".format, NAMES, NAMES),
    st.builds("./{}".format, NAMES),
)
SPECIFIERS = st.sampled_from(["", "==1.2.0", ">=1,<2", "~=1.2", "!=1.0"])
DIGESTS = st.one_of(st.just(""), st.from_regex(r"#sha256:[0-9a-f]{64}", fullmatch=True))


@given(SOURCES, NAMES, SPECIFIERS, DIGESTS)
def test_what_is_written_is_read_back(source: str, adapter: str, specifier: str, digest: str) -> None:
    reference = Reference.parse(f"{source}@{adapter}{specifier}{digest}")
    assert reference.adapter == adapter
    assert reference.source.text == source
    assert Reference.parse(str(reference)) == reference


@given(st.text(max_size=80))
def test_any_other_text_is_a_usage_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except UsageError:
        return
    assert Reference.parse(str(reference)) == reference
    assert not reference.source.url.startswith("-")


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "sst2", "acme/adapters", "acme@sst2", "acme/adapters@", "acme/adapters@SST2", "acme/adapters@a/b",
        "acme/adapters@x==", "acme/adapters@x=1", "acme/adapters@x<<1", "acme/adapters@x #sha256:1", "acme/adapters@x#sha256:12",
        "acme/adapters@x#md5:" + "0" * 64, "acme/adapters@x#sha256:" + "A" * 64, "-u/b@x", "acme/-b@x", "acme/..@x", "a//b@x",
        "ext::sh -c id@x", "ext::sh@x", "http:///x@y", "ftp://h/a/b@x", "https://user:pw@h/a/b@x", "https://tok@h/a/b@x",
        "https://h/a?b=c@x", "https://-h/a/b@x", "https://h/-a/b@x", "file://host/a@x", "https://h:99999/a/b@x",
        "git@h:-x@y", "acme/adapters@a..b", "acme/adapters@a.lock", "acme/ada pters@x", "acme/adapters@x\n", "ssh://-oProxy@h/a@x",
    ],
)  # fmt: skip
def test_a_malformed_reference_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert caught.value.hint


def test_credentials_never_appear_in_the_message() -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse("https://alice:s3cret@host/a/b@x")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://alice:s3cret@host/a/b", "https://alice:s3cret@host/a/b.git@X", "https://alice:s3cret@host/a/b@x==nope",
        "https://alice:s3cret@host/a/b@x#sha256:1", "https://alice:s3cret@host:99999/a/b@x", "ftp://alice:s3cret@host/a/b@x",
        "https://alice:s3cret@host/a/b?x=1@x", "https://host/a/b?token=s3cret@x", "https://alice:s3cret@host/a b@x",
        "https://s3cret@host/a/b@x!", "https://alice:s3cret/@host/a/b@x", "https://alice:@s3cret@host/a/b@x", "ssh://alice:s3cret@host/a/b@x",
    ],
)  # fmt: skip
def test_no_message_holds_a_secret_whatever_else_is_wrong(text: str) -> None:
    for parse in (Reference.parse, Source.parse):
        with pytest.raises(UsageError) as caught:
            parse(text)
        assert "s3cret" not in f"{caught.value!r} {caught.value} {pickle.loads(pickle.dumps(caught.value))}"


@pytest.mark.slow
def test_masking_takes_no_time() -> None:
    """A million letters of somebody else's: 27 s once, when every letter could begin an address."""
    long = "a" * 1_000_000
    assert str(UsageError(long)) == long
    assert "s3cret" not in str(UsageError(f"{long}https://me:s3cret@host/a {'b.c-' * 100_000}"))


@pytest.mark.parametrize("text", ["me:s3cret@host:org/repo", "https:/me:s3cret@host/a", "url: /a?X-Signature=s3cret"])
def test_secrets_outside_of_addresses_are_masked_too(text: str) -> None:
    assert "s3cret" not in str(UsageError(f"cannot read {text} now"))


def test_what_is_no_secret_is_said() -> None:
    for text in (
        "hf:gpt2@main",
        "hf:org/repo@main",
        "https://host/a/b.git@x==1",
        "ssh://git@host:22/a/b@x",
        "git@host:a/b@x",
        "http://127.0.0.1:80/a",
    ):
        assert str(UsageError(f"no: {text!r} ({text})", where=text)) == f"{text}: no: {text!r} ({text})"


@pytest.mark.parametrize(
    "text",
    [
        "https://git.example/acme/adapters.git", "https://git.example:8443/acme/adapters", "git@git.example:acme/adapters.git",
        "ssh://git@git.example:2222/acme/adapters.git", "git.example/acme/adapters",
    ],
)  # fmt: skip
def test_however_it_is_reached_a_repository_has_one_principal(text: str) -> None:
    assert Source.parse(text).principal == "git.example/acme/adapters"


def test_a_local_path_names_nobody() -> None:
    assert Source.parse("./repo").principal is None
    assert Source.parse("file:///srv/repo").principal is None


def test_a_local_path_may_have_blanks(tmp_path: Path) -> None:
    for text in (f"{tmp_path}/sp ace/repo.git", "./sp ace/repo.git", "~/sp ace/repo.git"):
        source = Reference.parse(f"{text}@sst2").source
        assert (source.kind, source.text) == ("path", text)
        assert source.url.endswith("/sp%20ace/repo.git")
    for text in ("acme/sp ace", "https://example.org/a/sp ace", "git@example.org:a/sp ace", "./sp\tace", "./sp\nace"):
        with pytest.raises(UsageError):
            Reference.parse(f"{text}@sst2")


def test_the_default_host_is_a_setting() -> None:
    assert Reference.parse("a/b@c", default_host="codeberg.org").source.url == "https://codeberg.org/a/b.git"


@pytest.mark.parametrize("text", ["C:\\work\\repo", "D:/work/repo", ".\\repo", "..\\repo", "\\\\server\\share"])
def test_paths_as_they_are_on_windows(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptergit import reference

    monkeypatch.setattr(reference, "_is_local", lambda one: reference._WINDOWS.match(one) is not None)
    found = Source.parse(text)
    assert (found.kind, found.principal) == ("path", None)
    assert reference._WINDOWS.match("git@host:acme/adapters") is None
    assert reference._WINDOWS.match("acme/adapters") is None
