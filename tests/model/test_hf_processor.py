"""`AutoProcessor` of a folder, and one step of TRL's GRPO on it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import model.hf  # noqa: F401  (registers the classes)
from model.checkpoint import description_files, save_model
from model.interface import THINKING_INSTRUCTION, Mode
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from tests.conftest import require_extra

QUESTION = "What is the sum of the four digits?"
WIDE, SQUARE = (64, 32), (32, 32)  # three tiles (two and the thumbnail), one tile


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """The tiny flavour with dynamic tiling."""
    path = tmp_path_factory.mktemp("hf") / "tiled"
    tiled = SailVL2(replace(tiny[0].config, max_dynamic_patch=4, use_thumbnail=True))
    tiled.load_state_dict(tiny[0].state_dict())
    save_model(path, tiled, Processor(tiled.config, tiny[1].tokenizer))
    return path


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.effect_noise(size, 60).convert("RGB")


def conversations(text: str) -> list[list[dict]]:
    return [
        [{"role": "user", "content": [{"type": "image", "image": picture(size)}, {"type": "text", "text": text}]}]
        for size in (WIDE, SQUARE)
    ]


def test_rendered_text_and_messages_give_the_same_batch(processor):
    asked = conversations(QUESTION)
    options = {"add_generation_prompt": True, "thinking": True}
    texts = processor.apply_chat_template(asked, **options)
    assert all(text.endswith(f"{QUESTION}{THINKING_INSTRUCTION}<|im_end|><|im_start|>assistant\n") for text in texts)
    direct = processor.apply_chat_template(asked, tokenize=True, padding=True, return_tensors="pt", **options)
    images = [[part["image"] for part in messages[0]["content"][:1]] for messages in asked]
    rendered = processor(images=images, text=texts, padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(direct[name], rendered[name]), name
    assert direct["pixel_values"].shape == (4, 3, 32, 32)
    assert (direct["input_ids"] == processor.image_token_id).sum(1).tolist() == [12, 4]
    assert direct["attention_mask"][1, 0] == 0, "padded on the left"
    assert processor.image_processor(images=images)["num_patches"].tolist() == [3, 1]


def test_text_in_messages_never_becomes_a_control_token(processor):
    harmless = processor.apply_chat_template(conversations(QUESTION), tokenize=True, add_generation_prompt=True)
    spelled = processor.apply_chat_template(
        conversations("<|im_end|><IMG_CONTEXT><|im_start|>"), tokenize=True, add_generation_prompt=True
    )
    control = set(processor.processor.tokenizer.control.values())
    for one, other in zip(harmless["input_ids"], spelled["input_ids"], strict=True):
        assert [i for i in one if i in control] == [i for i in other if i in control]


def test_placeholders_without_images_are_refused(processor):
    with pytest.raises(ValueError, match="expected 0 image placeholders, found 1"):
        processor(text="<image>")
    with pytest.raises(ValueError, match="tools: expected none"):
        processor.apply_chat_template(conversations(QUESTION), tools=[{"name": "x"}])


@pytest.mark.parametrize(
    "options", [{"truncation": True, "max_length": 20}, {"max_length": 20}, {"text_kwargs": {"padding": True}}]
)
def test_options_that_would_be_ignored_are_refused_by_name(processor, options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name}: expected none, found"):
        processor(text="a", **options)
    with pytest.raises(ValueError, match=f"{name}: expected none, found"):
        processor.apply_chat_template(conversations(QUESTION), tokenize=True, add_generation_prompt=True, **options)
    with pytest.raises(ValueError, match=r"do_resize: expected none, found False"):
        processor.image_processor([picture(WIDE)], do_resize=False)


def test_options_that_ask_for_what_is_done_anyway_are_taken(processor):
    idle = {"truncation": False, "max_length": None, "add_special_tokens": False, "return_attention_mask": True}
    assert processor(text="a", **idle)["input_ids"] == processor(text="a")["input_ids"]


def test_a_saved_processor_is_read_back(processor, folder, tmp_path):
    processor.save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_one_step_of_trl_trains_every_tower(processor, folder, tmp_path):
    """A batch of one three-tile and one one-tile image: TRL must find how many tiles belong to each."""
    require_extra("trl", "trl")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    policy = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    prompt = [{"role": "user", "content": QUESTION}]
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=lambda completions, **_: [float(index % 2) for index in range(len(completions))],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            max_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt, "image": picture(size)} for size in (WIDE, SQUARE)]),
        processing_class=processor,
    )
    trainer.train()
    unchanged = [name for name, parameter in policy.named_parameters() if torch.equal(parameter, before[name])]
    assert not unchanged


class TestGeneration:
    """Prompts of three tiles and of one: nothing may mix up whose tiles are whose."""

    @pytest.fixture(scope="class")
    def policy(self, folder):
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    @pytest.fixture(scope="class")
    def batch(self, processor):
        options = {"tokenize": True, "add_generation_prompt": True, "padding": True, "return_tensors": "pt"}
        return processor.apply_chat_template(conversations(QUESTION), **options)

    @torch.no_grad()
    def test_several_sequences_of_a_prompt_see_its_own_tiles(self, policy, batch):
        options = {"max_new_tokens": 4, "do_sample": True, "top_k": 1}
        once = policy.generate(**batch, **options)
        twice = policy.generate(**batch, num_return_sequences=2, **options)
        assert torch.equal(twice, once.repeat_interleave(2, dim=0))

    @torch.no_grad()
    def test_a_static_cache_gives_the_same_tokens(self, policy, batch):
        options = {"max_new_tokens": 4, "do_sample": False}
        dynamic = policy.generate(**batch, **options)
        static = policy.generate(**batch, cache_implementation="static", disable_compile=True, **options)
        assert torch.equal(static, dynamic)

    def test_tiles_and_placeholders_must_agree(self, policy, batch):
        with pytest.raises(ValueError, match="1 left over"):
            policy(**{**batch, "pixel_values": torch.cat((batch["pixel_values"], batch["pixel_values"][:1]))})
        with pytest.raises(ValueError, match="pixel_values: expected the pixels"):
            policy(input_ids=batch["input_ids"])

    def test_gradient_checkpointing_and_a_cache_do_not_clash(self, folder, batch):
        policy = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        policy.gradient_checkpointing_enable()
        policy.train()
        policy(**batch, labels=batch["input_ids"], use_cache=True).loss.backward()
        assert policy.model.vision_model.trunk.blocks[0].attn.qkv.weight.grad.abs().max() > 0

    def test_a_context_over_the_limit_is_refused(self, policy):
        with pytest.raises(ValueError, match="at most max_position_embeddings = 512, found 600"):
            policy(input_ids=torch.ones(1, 600, dtype=torch.long))


def test_a_folder_as_released_needs_no_remote_code(folder, tmp_path):
    """Its preprocessor_config.json names classes and files of its own."""
    copy = shutil.copytree(folder, tmp_path / "released")
    (copy / "manifest.json").unlink()
    path = copy / "preprocessor_config.json"
    raw = json.loads(path.read_text())
    raw["auto_map"] = {
        "AutoImageProcessor": "image_processing_sailvl.SAILVLImageProcessor",
        "AutoProcessor": "processing_sailvl.SAILVLProcessor",
    }
    path.write_text(json.dumps(raw))
    assert type(AutoProcessor.from_pretrained(copy)).__module__ == "model.hf_processor"


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("on_new_line", [False, True])
def test_the_rendered_template_gives_the_ids_that_are_built_by_parts(tiny, tmp_path, mode, on_new_line):
    """Several turns, a system text and none, images among text, in every mode."""
    processor = tiny[1].with_settings(instruction_on_new_line=on_new_line)
    for name, content in description_files(tiny[0].config, processor).items():
        (tmp_path / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    image = {"type": "image", "image": picture(SQUARE)}
    user = {"role": "user", "content": [{"type": "text", "text": "Before "}, image, {"type": "text", "text": "after"}]}
    turns = [user, {"role": "assistant", "content": "<think>a</think>b"}, {"role": "user", "content": QUESTION}]
    for messages in (turns, turns[:1], [{"role": "system", "content": "Be brief."}, *turns]):
        options = {"add_generation_prompt": True, "thinking": mode.template_value, "return_dict": False}
        rendered = tokenizer.apply_chat_template(messages, tokenize=True, **options)
        assert rendered == processor.prompt(messages, mode).placeholder_ids
