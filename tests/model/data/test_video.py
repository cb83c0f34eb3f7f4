"""Videos that somebody else supplied: the right frames of the harmless, a clear refusal of the rest, no hang."""

import builtins
import itertools
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from model.checkpoint import build_flavour
from model.config import Flavour
from model.data import video
from model.data.media_error import MediaError
from model.data.video import check_video, read_frames, video_size
from model.interface import IMAGE_CONTEXT, Mode
from model.processing.processor import Processor
from model.processing.visuals import check_visuals
from tests.conftest import require_extra

STEP = 4  # grey levels between two frames


def write_video(path, num_frames=30, size=(64, 48), codec="mpeg4", rotation=None):
    """Frame k is grey 5 + 4k with a white square at its top left; encoded at high quality."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for k in range(num_frames):
            pixels = np.full((size[1], size[0], 3), 5 + STEP * k, np.uint8)
            pixels[:16, :16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return path


def middle(image) -> int:
    return image.getpixel((image.width // 2, image.height // 2))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    require_extra("video", "av")
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4")
    write_video(folder / "a.avi")
    write_video(folder / "a.mkv", codec="libx264")
    write_video(folder / "a.webm", codec="libvpx-vp9")
    write_video(folder / "short.mp4", num_frames=3)
    write_video(folder / "turned.mp4", rotation=90)
    return folder


class TestFrames:
    @pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.webm"])
    @pytest.mark.parametrize("num_frames", [1, 2, 7, 16, 30])
    def test_the_middle_of_each_of_equal_stretches(self, folder, name, num_frames):
        """Grey tells which frame it is, within the codec's error of less than half a step either way."""
        found = read_frames(folder, name, num_frames, middle)
        wanted = [int((k + 0.5) * 30 / num_frames) for k in range(num_frames)]
        assert [round((value - 5) / STEP) for value in found] == pytest.approx(wanted, abs=1)
        assert len(found) == num_frames and found == sorted(found)

    def test_a_short_video_repeats_frames(self, folder):
        found = read_frames(folder, "short.mp4", 9, middle)
        assert [found.count(value) for value in sorted(set(found))] == [3, 3, 3]

    def test_frames_are_upright_rgb(self, folder):
        """A rotation of 90 degrees is counter-clockwise: the top left corner comes to the bottom left."""
        assert video_size(folder, "a.mp4") == (64, 48) and video_size(folder, "turned.mp4") == (48, 64)
        (plain,) = read_frames(folder, "a.mp4", 1, lambda image: image)
        (turned,) = read_frames(folder, "turned.mp4", 1, lambda image: image)
        assert plain.mode == turned.mode == "RGB"
        assert plain.getpixel((4, 4))[0] > 200 > turned.getpixel((4, 4))[0]
        assert turned.getpixel((4, 60))[0] > 200

    def test_a_packet_that_shows_nothing_is_no_frame(self, folder, monkeypatch):
        """Where packets promise more frames than decode, the frames there are get spread instead."""
        monkeypatch.setattr(video, "_count_packets", lambda *_: 45)
        found = read_frames(folder, "a.mp4", 3, middle)
        assert [round((value - 5) / STEP) for value in found] == pytest.approx([5, 15, 25], abs=1)


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "expected a whole video in one of mov"),
            (b"hello" * 100, "expected a whole video in one of mov"),
            (
                b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.mp4\n#EXT-X-ENDLIST\n",
                "expected a whole video in one of",
            ),
            (b"ffconcat version 1.0\nfile a.mp4\n", "expected a whole video in one of"),
            (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "expected a whole video in one of"),
        ],
        ids=["empty", "text", "playlist", "concat", "session"],
    )
    def test_content_under_a_video_name(self, folder, content, expected):
        (folder / "b.mp4").write_bytes(content)
        for read in (video_size, check_video, lambda root, name: read_frames(root, name, 2, middle)):
            with pytest.raises(MediaError, match=expected) as error:
                read(folder, "b.mp4")
            assert "b.mp4" in str(error.value)

    def test_an_image_is_no_video(self, folder):
        """The library would read it as one frame: it has readers for far more than videos."""
        Image.new("RGB", (64, 48)).save(folder / "image.mp4", "PNG")
        with pytest.raises(MediaError, match="expected a whole video in one of mov"):
            check_video(folder, "image.mp4")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("none.mp4", "none.mp4: expected a file, found none"),
            (".", "expected a file, found a folder or a device"),
            ("../a.mp4", "expected a path inside"),
            ("a\0.mp4", "found a NUL character"),
            ("\ud800.mp4", "expected a file name, found"),
        ],
    )
    def test_names(self, folder, name, expected):
        with pytest.raises(MediaError, match=expected):
            read_frames(folder, name, 2, middle)

    def test_a_pipe_is_not_waited_for(self, folder):
        os.mkfifo(folder / "pipe.mp4")
        with pytest.raises(MediaError, match="found a folder or a device"):
            check_video(folder, "pipe.mp4")

    def test_sound_alone(self, folder):
        import av

        with av.open(str(folder / "sound.mp4"), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        with pytest.raises(MediaError, match="expected a video stream, found none"):
            check_video(folder, "sound.mp4")

    @pytest.mark.parametrize(
        ("cap", "value", "expected"),
        [
            ("MAX_VIDEO_BYTES", 100, "expected at most 100 bytes, found"),
            ("MAX_VIDEO_FRAMES", 29, "expected at most 29 frames"),
            ("MAX_VIDEO_PIXELS", 30 * 64 * 48 - 1, "expected at most 20000 frames and 92159 pixels in all"),
            ("MAX_PIXELS", 64 * 48 - 1, "expected frames of 1 to 3071 pixels, found 64 x 48"),
        ],
    )
    def test_caps(self, folder, monkeypatch, cap, value, expected):
        monkeypatch.setattr(video, cap, value + 1)
        check_video(folder, "a.mp4") if cap != "MAX_VIDEO_BYTES" else None
        monkeypatch.setattr(video, cap, value)
        for read in (check_video, lambda root, name: read_frames(root, name, 2, middle)):
            with pytest.raises(MediaError, match=expected):
                read(folder, "a.mp4")

    def test_decoding_stops_at_the_cap_whatever_the_packets_said(self, folder, monkeypatch):
        monkeypatch.setattr(video, "MAX_VIDEO_FRAMES", 9)
        monkeypatch.setattr(video, "_count_packets", lambda *_: 30)
        with pytest.raises(MediaError, match="expected at most 9 frames"):
            read_frames(folder, "a.mp4", 1, middle)

    def test_both_readings_of_a_video_share_one_deadline(self, folder, monkeypatch):
        """A second passes for each frame; where the packets said too much, 30 frames are read twice."""
        monkeypatch.setattr(video, "time", SimpleNamespace(monotonic=itertools.count().__next__))
        for num_packets, deadline in ((30, 35.0), (60, 65.0)):
            monkeypatch.setattr(video, "_count_packets", lambda *_, count=num_packets: count)
            monkeypatch.setattr(video, "VIDEO_DEADLINE_S", deadline)
            assert len(read_frames(folder, "a.mp4", 30, middle)) == 30
        monkeypatch.setattr(video, "VIDEO_DEADLINE_S", 45.0)
        with pytest.raises(MediaError, match="is decoded within 45 s, found one that takes longer"):
            read_frames(folder, "a.mp4", 30, middle)

    def test_damage_anywhere_gives_frames_or_a_media_error(self, folder, tmp_path):
        """Bytes changed at random and ends cut off: never another exception, which would end a run."""
        seeds = [
            (name, (folder / name).read_bytes()) for name in ("short.mp4", "a.avi", "a.mkv", "a.webm", "turned.mp4")
        ]
        rng = random.Random(0)
        counts = {"read": 0, "refused": 0}
        for _ in range(300):
            name, content = rng.choice(seeds)
            content = bytearray(content)
            for _ in range(rng.choice([1, 1, 3, 10])):
                content[rng.randrange(min(len(content), 3000))] = rng.choice([0, 255, rng.randrange(256)])
            if rng.random() < 0.3:
                del content[rng.randrange(len(content)) :]
            (tmp_path / name).write_bytes(content)
            try:
                assert len(read_frames(tmp_path, name, 4, middle)) == 4
                counts["read"] += 1
            except MediaError:
                counts["refused"] += 1
        assert min(counts.values()) > 50, counts


def test_without_the_library_the_error_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(ValueError, match=r"pip install 'sailvl2-rl\[video\]'"):
        read_frames(tmp_path, "a.mp4", 1, middle)


class TestPrompts:
    def messages(self, *parts):
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "What happens?"}]}]

    def test_each_frame_is_named_and_takes_one_tile(self, tiny, folder):
        processor: Processor = tiny[1].with_settings(max_tiles=6, use_msac=True)
        part = {"type": "video", "video": "a.mp4", "num_frames": 3}
        prompt = processor.prompt(self.messages(part), Mode.direct, folder)
        shown = processor.tokenizer.decode(prompt.placeholder_ids, keep_control=True)
        frames = "".join(f"Frame-{k}: <img><IMG_CONTEXT></img>\n" for k in (1, 2, 3))
        assert f"user\n{frames}What happens?<|im_end|>" in shown
        assert prompt.ids.count(processor.placeholder_id) == 3 * 4
        assert prompt.files == ["a.mp4"]
        images = processor.open_images(folder, prompt.images)
        assert [tuple(image.shape) for image in images] == [(1, 3, 32, 32)] * 3
        assert images[0].mean() < images[1].mean() < images[2].mean()

    def test_sixteen_frames_unless_told_and_no_file_is_opened_for_that(self, tiny):
        prompt = tiny[1].prompt(self.messages({"type": "video", "video": "not there.mp4"}), Mode.direct)
        assert prompt.placeholder_ids.count(tiny[1].tokenizer.control[IMAGE_CONTEXT]) == 16
        assert prompt.ids.count(tiny[1].placeholder_id) == 64

    @pytest.mark.parametrize("num_frames", [0, -1, 1025, 2.0, "3", True, None])
    def test_numbers_of_frames_that_make_no_sense(self, tiny, num_frames):
        part = {"type": "video", "video": "a.mp4", "num_frames": num_frames}
        with pytest.raises(ValueError, match="num_frames: expected 1 to 1024"):
            tiny[1].prompt(self.messages(part), Mode.direct)

    def test_with_an_image_beside_it(self, tiny, folder):
        """Two visuals: no MSAC for the image, although it is the only image."""
        processor = tiny[1].with_settings(max_tiles=6, use_thumbnail=True, use_msac=True)
        image = Image.new("RGB", (64, 32))
        parts = [{"type": "image", "image": image}, {"type": "video", "video": "a.mp4", "num_frames": 2}]
        prompt = processor.prompt(self.messages(*parts), Mode.direct, folder)
        assert [len(i) for i in processor.open_images(folder, prompt.images)] == [3, 1, 1]
        assert prompt.ids.count(processor.placeholder_id) == 4 * 5

    def test_any_resolution_keeps_the_frames_size(self, folder):
        processor = build_flavour(Flavour.tiny_anyres, 0)[1]
        part = {"type": "video", "video": "turned.mp4", "num_frames": 2}
        prompt = processor.prompt(self.messages(part), Mode.direct, folder)
        images = processor.open_images(folder, prompt.images)
        assert [tuple(image.shape) for image in images] == [(1, 3, 64, 48)] * 2
        step = processor.config.pixels_per_token
        assert prompt.ids.count(processor.placeholder_id) == 2 * (64 // step) * (48 // step)

    def test_files_are_checked_before_they_are_needed(self, tiny, folder):
        parts = [{"type": "video", "video": name, "num_frames": 2} for name in ("a.mp4", "none.mp4")]
        images = tiny[1].prompt(self.messages(*parts), Mode.direct).images
        check_visuals(folder, images[:1])
        with pytest.raises(MediaError, match=r"none\.mp4: expected a file"):
            check_visuals(folder, images)
