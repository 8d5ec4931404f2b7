"""Recordings as data: wav files and what is wrong with them, the spectrogram of known sounds, words and speakers divided."""

import wave
import zipfile

import numpy as np
import pytest

from metarun.data import tones
from metarun.data.picture import UnreadableError
from metarun.data.sound import mel_filters, read_wav, spectrogram, trimmed
from metarun.data.speech import Speech
from metarun.errors import UserError

SETTINGS = {
    "classes": "word", "mels": 16, "frames": 16, "val_classes": 1, "test_classes": 1, "held_out": 2, "pieces": 1, "test_speakers": 0,
}  # fmt: skip
RATE = 8000


def tone(hertz, seconds=0.3, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path, samples, rate=RATE, channels=1, width=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    return path


def test_samples_are_those_that_were_written(tmp_path):
    samples, rate = read_wav(write(tmp_path / "a.wav", tone(440), rate=16000))
    assert rate == 16000
    assert np.abs(samples - tone(440)).max() < 1e-4
    assert np.array_equal(read_wav((tmp_path / "a.wav").read_bytes())[0], samples)


@pytest.mark.parametrize(
    ("samples", "form", "wanted"),
    [
        (tone(440), {"channels": 2}, "^2 channels: save it with one"),
        (tone(440), {"width": 3}, "24 bits: save it with 16"),
        (tone(440), {"width": 1}, "8 bits: save it with 16"),
        (tone(440), {"rate": 1000}, "1000 samples a second"),
        (tone(440, 0.02), {}, "shorter than 0.05 seconds"),
        (np.zeros(RATE), {}, "silence"),
        (np.zeros(RATE * 61), {}, "61 seconds, above the limit of 60"),
    ],
)
def test_other_forms_are_refused_with_their_mend(tmp_path, samples, form, wanted):
    with pytest.raises(UnreadableError, match=wanted):
        read_wav(write(tmp_path / "a.wav", samples, **form))


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound at all", b"RIFF\x24\0\0\0WAVEfmt "])
def test_what_is_no_wav_file(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UnreadableError, match="no wav file, or damaged"):
        read_wav(tmp_path / "a.wav")
    with pytest.raises(UnreadableError, match="does not exist"):
        read_wav(tmp_path / "b.wav")


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_tone_is_a_bright_row_at_its_pitch_whatever_the_rate(rate):
    for hertz in (200, 700, 1500, 3000):
        image = spectrogram(tone(hertz, rate=rate), rate, 32, 12)
        assert (image.shape, image.dtype) == ((1, 32, 12), np.uint8)
        mel = 2595 * np.log10(1 + hertz / 700)
        edges = np.linspace(*(2595 * np.log10(1 + np.array([50, 4000]) / 700)), 34)
        row = 31 - np.abs(edges[1:-1] - mel).argmin()  # low pitches are at the bottom
        assert (np.abs(image[0, :, 3:9].argmax(0) - row) <= 1).all()


def test_filters_are_triangles_whose_sum_is_one_between_the_first_top_and_the_last():
    filters = mel_filters(4096, RATE, 8)
    tops = filters.argmax(1)
    assert (np.diff(tops) > 0).all()
    assert np.allclose(filters[:, tops[0] + 1 : tops[-1]].sum(0), 1)
    assert mel_filters(64, RATE, 40).any(1).all()  # fewer frequencies than rows: none is empty


def test_loudness_and_silence_around_a_word_and_its_pace_do_not_matter():
    word, slow = (np.concatenate([tone(hertz, seconds) for hertz in (300, 900, 2000)]) for seconds in (0.2, 0.4))
    still = np.zeros(2000)

    def alike(samples):
        """The correlation of two pictures, without their first and last columns, which are half of silence."""
        pictures = [spectrogram(sound, RATE, 32, 18)[..., 1:-1].ravel() for sound in (samples, word)]
        return np.corrcoef(pictures)[0, 1]

    assert min(map(alike, (0.1 * word, np.concatenate([still, word, still]), slow))) > 0.85
    assert alike(word[::-1]) < 0.5
    assert len(trimmed(np.concatenate([still, word, still]), RATE)) == pytest.approx(len(word), rel=0.1)


def spoken(folder, words="abcd", speakers=("ann", "bob", "cy"), takes=4):
    """A folder of files WORD_SPEAKER_TAKE.wav; pitch tells the word, loudness ends the speaker."""
    for i, word in enumerate(words):
        for j, speaker in enumerate(speakers):
            for take in range(takes):
                write(folder / f"{word}_{speaker}_{take}.wav", tone(300 + 500 * i + 60 * j + 7 * take, 0.1))
    return str(folder)


@pytest.mark.parametrize("packed", [False, True])
def test_words_are_divided_by_name_and_speakers_are_mixed(tmp_path, packed):
    root = spoken(tmp_path / "said")
    if packed:
        with zipfile.ZipFile(tmp_path / "said.zip", "w") as archive:
            for path in (tmp_path / "said").iterdir():
                archive.write(path, f"recordings/{path.name}")
        root = str(tmp_path / "said.zip")
    data = Speech(0, root=root, **SETTINGS)
    assert {split: part.names for split, part in data.splits.items()} == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    assert {split: part.counts.tolist() for split, part in data.splits.items()} == {"train": [12, 12], "val": [12], "test": [12]}
    by_speaker = Speech(0, root=root, **SETTINGS | {"classes": "speaker"})
    assert {split: part.names for split, part in by_speaker.splits.items()} == {"train": ["ann"], "val": ["bob"], "test": ["cy"]}
    assert by_speaker.splits["test"].counts.tolist() == [16]


def test_unseen_speakers_are_heard_in_the_test_alone(tmp_path):
    root = spoken(tmp_path)
    apart, mixed = (Speech(0, root=root, **SETTINGS | {"test_speakers": n}) for n in (1, 0))
    assert {split: part.counts.tolist() for split, part in apart.splits.items()} == {"train": [8, 8], "val": [8], "test": [4]}
    unseen = {row.numpy().tobytes() for row in apart.splits["test"].images}
    everything = {row.numpy().tobytes() for part in mixed.splits.values() for row in part.images}
    assert unseen <= everything
    assert not unseen & {row.numpy().tobytes() for split in ("train", "val") for row in apart.splits[split].images}


def test_development_words_may_be_those_of_training_backwards_in_recordings_of_their_own(tmp_path):
    root = spoken(tmp_path)
    data = Speech(0, root=root, **SETTINGS | {"val_classes": 0})
    assert data.splits["val"].names == ["a backwards", "b backwards", "c backwards"]
    assert data.splits["train"].counts.tolist() == data.splits["val"].counts.tolist() == [6, 6, 6]
    forward = {row.numpy()[..., ::-1].tobytes() for row in data.splits["val"].images}
    assert len(forward) == 18
    assert not forward & {row.numpy().tobytes() for row in data.splits["train"].images}


def test_spliced_words_have_the_beginning_of_one_and_the_end_of_another_by_one_speaker(tmp_path):
    root = spoken(tmp_path)
    plain, data = (Speech(0, root=root, **SETTINGS | {"pieces": pieces}).splits["train"] for pieces in (1, 2))
    assert data.names == ["a", "b", "a+b", "b+a"]
    assert data.counts.tolist() == [12] * 4
    first, second = plain.images[:12], plain.images[12:]  # by speaker, then take
    assert (data.images[24:36, ..., :8] == first[..., :8]).all()
    assert (data.images[24:36, ..., 8:] == second[..., 8:]).all()
    assert (data.images[36:, ..., :8] == second[..., :8]).all()
    for i, file in enumerate(sorted(tmp_path.glob("*.wav"))):  # every speaker in both parts
        folder = tmp_path / f"part{i % 2}" / file.name.partition("_")[0]
        folder.mkdir(exist_ok=True, parents=True)
        file.rename(folder / file.name)
    apart = Speech(0, root=root, **SETTINGS | {"pieces": 2}).splits["train"]
    assert (apart.names, apart.counts.tolist()) == (data.names, [12] * 4)


def test_folders_and_files_that_name_other_classes_are_refused(tmp_path):
    for i, day in enumerate(("mon", "tue", "wed")):
        for take in range(3):
            write(tmp_path / f"class{take}" / f"{day}_ann_{take}.wav", tone(300 + 100 * i + 10 * take, 0.1))
    with pytest.raises(UserError, match=r"is the class of class0/mon_ann_0.wav its folder's name, or the word in its own\? For folders"):
        Speech(0, root=str(tmp_path), **SETTINGS)


def test_classes_of_folders(tmp_path):
    for i, word in enumerate(("yes", "no", "stop")):
        for take in range(3):
            write(tmp_path / word / f"take {take}.wav", tone(400 + 300 * i + 9 * take, 0.1))
    data = Speech(0, root=str(tmp_path), **SETTINGS)
    assert [part.names for part in data.splits.values()] == [["no"], ["stop"], ["yes"]]
    write(tmp_path / "loose.wav", tone(300))
    with pytest.raises(UserError, match=r"loose.wav is in no class folder, and not named WORD_SPEAKER_TAKE.wav"):
        Speech(0, root=str(tmp_path), **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"val_classes": 2, "test_classes": 2}, r"data.val_classes=2 \+ data.test_classes=2 leave none of the 4 classes"),
        ({"test_speakers": 3}, "data.test_speakers=3 leaves none of the 3 speakers"),
        ({"classes": "speaker", "pieces": 2}, "set data.pieces=1 data.test_speakers=0"),
        ({"val_classes": 0, "held_out": 4}, "class 'a' has 0 recordings here"),
    ],
)
def test_options_that_cannot_be(tmp_path, changes, wanted):
    with pytest.raises(UserError, match=wanted):
        Speech(0, root=spoken(tmp_path), **SETTINGS | changes)


def test_a_recording_that_cannot_be_read_is_named(tmp_path):
    root = spoken(tmp_path)
    write(tmp_path / "a_ann_9.wav", tone(300), channels=2)
    with pytest.raises(UserError, match=r"a_ann_9.wav is not a readable recording: 2 channels: save it with one \(mono\)"):
        Speech(0, root=root, **SETTINGS)
    with pytest.raises(UserError, match=r"does not exist; data.root is a folder or .zip"):
        Speech(0, root=f"{root}/nowhere", **SETTINGS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no wav files"):
        Speech(0, root=f"{root}/empty", **SETTINGS)


def test_invented_words_are_always_the_same_and_nearer_to_themselves_than_to_others():
    sounds = tones.invent(6, 3, 3)
    again = tones.invent(6, 3, 3)
    assert all(np.array_equal(samples, again[key]) for key, samples in sounds.items())
    images = np.stack([spectrogram(samples, tones.RATE, 32, 32) for samples in sounds.values()]).reshape(6, 9, -1).astype(float)
    means = images.mean(1)
    near = np.linalg.norm(images[:, :, None] - means, axis=-1).argmin(-1)
    assert (near == np.arange(6)[:, None]).mean() > 0.9
