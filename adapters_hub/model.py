"""`AdaptedModel`: what a user holds. One backbone, a library of adapters, and the ways to use them.

A façade: the runtime does the work of names, blends and forwards, `inference` that of each task.
"""

from __future__ import annotations  # so that help() shows the names of types, not what they are

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters_hub.backbone.checkpoint import Checkpoint
from adapters_hub.backbone.loaded import name_of, take_model
from adapters_hub.backbone.loading import read_backbone
from adapters_hub.backbone.options import DeviceMap, Dtype, Options
from adapters_hub.errors import NotFoundError, SettingsError
from adapters_hub.inference.answer import answer
from adapters_hub.inference.arrow import arrow_blends
from adapters_hub.inference.classify import (
    NO_TOP_K,
    NoTopK,
    Scored,
    TopK,
    as_pipeline,
    check_top_k,
    classify,
)
from adapters_hub.inference.embed import embed
from adapters_hub.inference.encoder import Encoder
from adapters_hub.inference.export import merge
from adapters_hub.inference.generate import Prompted, Prompts, generate, prompts_of, stream
from adapters_hub.inference.inputs import texts_of
from adapters_hub.inference.routing import RowLanguage, row_blends, row_languages
from adapters_hub.inference.tag import Entity, tag
from adapters_hub.inference.translate import translate
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.asked import backbone_of, language_adapters, language_term, of_rows
from adapters_hub.library.blend import Blend
from adapters_hub.library.languages import canonical
from adapters_hub.library.library import Library
from adapters_hub.library.row_terms import Auto
from adapters_hub.runtime.bank import MEMORY
from adapters_hub.runtime.core import ACTIVE, Active, Adapters, Languages, Runtime, Weights
from adapters_hub.sharing.engine import Source
from adapters_hub.sharing.engines import write_for
from adapters_hub.tasks.question_answering import Answer, QuestionAnswering
from adapters_hub.text.identification import Identifier


class AdaptedModel(Runtime):
    """A frozen backbone whose rows can each use another blend of adapters; see `Runtime`.

    In every method ``adapters`` is one blend for all rows, or a list of one a row; None is the bare
    backbone, and not given it is the active blend (`use`). ``languages``, one for all rows or one a
    row, adds to each row's blend the adapter of its language, at the weight that the adapters'
    cards say (else 1); a language without an adapter adds nothing, which is logged once. ``auto``
    in a blend is the adapter of the language that a text is found to be in; see `languages_of`.

    Texts are one text, or a list, tuple, array or Series of them. The result is a list with one
    element a text: of one where one text is given, empty where none is. Raises `SettingsError` for
    what is no text, for as many blends or languages as there are no rows, and for a ``batch_size``
    below 1.
    """

    def generate(
        self,
        texts: Prompts,
        adapters: Adapters = ACTIVE,
        *,
        languages: Languages = None,
        **options: object,
    ) -> list[str]:
        """Continue each text (decoder) or answer it (encoder-decoder); transformers' options.

        A text is taken as it stands; a mapping of a row's fields, ``{"text": …}``, is set into the
        prompt that its blend was trained with; a list of messages, ``{"role": …, "content": …}``,
        is one conversation, set into the tokenizer's chat template. Beams, sampling, stop strings
        and the key-value cache work as in ``transformers``; ``max_new_tokens`` defaults to 32.
        Raises `BackboneError` for an encoder, `SettingsError` for options that ask for tensors.
        """
        return generate(self, prompts_of(texts), adapters, languages, options)

    def stream(
        self,
        text: Prompted,
        adapters: Adapters = ACTIVE,
        *,
        languages: Languages = None,
        **options: object,
    ) -> Iterator[str]:
        """The pieces of what `generate` gives for one text, as they are written.

        A thread writes; what it raises is raised here, and it stops when the iterator is left or
        closed. Not with beams, which write no text from left to right.
        """
        prompts = prompts_of(text)
        if len(prompts) != 1:
            raise SettingsError(
                f"stream writes one text, not {len(prompts)}; generate takes several"
            )
        return stream(self, prompts[0], adapters, languages, options)

    def translate(
        self,
        texts: Sequence[str] | str,
        source: str | Sequence[str],
        target: str | Sequence[str],
        adapters: Adapters = ACTIVE,
        batch_size: int = 32,
        *,
        languages: Languages = None,
        **options: object,
    ) -> list[str]:
        """Each text, in language ``source`` (one, or one a row), in language ``target``.

        An encoder-decoder with language tokens (M2M100, NLLB, mBART) gets them; others get the
        prompt that the row's blend was trained with, which names the languages. Options are
        transformers'; ``max_new_tokens`` defaults to 128. Raises `LanguageError`, or
        `BackboneError` for a language that the tokenizer has no token for, and for an encoder.
        """
        return translate(
            self, texts_of(texts), source, target, adapters, languages, batch_size, options
        )

    @overload
    def classify(
        self,
        texts: Sequence[str] | str,
        adapters: Adapters = ...,
        batch_size: int = ...,
        *,
        languages: Languages = ...,
    ) -> list[dict[str, float]]: ...

    @overload
    def classify(  # type: ignore[overload-overlap]
        self,
        texts: str,
        adapters: Adapters = ...,
        batch_size: int = ...,
        *,
        languages: Languages = ...,
        top_k: TopK,
    ) -> list[Scored]: ...

    @overload
    def classify(
        self,
        texts: Sequence[str],
        adapters: Adapters = ...,
        batch_size: int = ...,
        *,
        languages: Languages = ...,
        top_k: TopK,
    ) -> list[list[Scored]]: ...

    def classify(
        self,
        texts: Sequence[str] | str,
        adapters: Adapters = ACTIVE,
        batch_size: int = 32,
        *,
        languages: Languages = None,
        top_k: TopK | NoTopK = NO_TOP_K,
    ) -> list[dict[str, float]] | list[Scored] | list[list[Scored]]:
        """Each text's labels with their probabilities, the most probable first.

        They add up to one, but where a text may have any number of the labels (multi-label): there
        each by itself is between 0 and 1. With ``top_k`` the result is what a transformers
        pipeline gives for it: ``{"label": …, "score": …}`` of the ``top_k`` most probable labels
        (None: of all), in a list for each text; one text alone has just that list.
        """
        if top_k is not NO_TOP_K:
            check_top_k(top_k)
        results = classify(self, texts_of(texts), adapters, languages, batch_size)
        if top_k is NO_TOP_K:
            return results
        scored = as_pipeline(results, top_k)
        return scored[0] if isinstance(texts, str) else scored

    def embed(
        self,
        texts: Sequence[str] | str,
        adapters: Adapters = ACTIVE,
        batch_size: int = 32,
        *,
        languages: Languages = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        pooling: str | None = None,
    ) -> Tensor:
        """Unit vectors (texts, width), float32, whose products are cosines.

        ``prompt`` is put before each text, or that of ``prompt_name`` in each row's adapter
        (``query``, ``document``). ``pooling`` (``mean``, ``cls``, ``last``) defaults to what the
        row's adapter was trained with, else the last token of a decoder, else the mean. Raises
        `HeadError` for a blend of adapters that were trained to embed in different ways.
        """
        return embed(
            self,
            texts_of(texts),
            adapters,
            languages,
            batch_size,
            prompt=prompt,
            prompt_name=prompt_name,
            pooling=pooling,
        )

    def encoder(
        self,
        adapters: Weights | Active = ACTIVE,
        pooling: str | None = None,
        *,
        languages: str | None = None,
    ) -> Encoder:
        """The model under one blend, usable where a ``SentenceTransformer`` encodes.

        ``languages`` is one language here, whose adapter the blend gets.
        """
        return Encoder(self, adapters, pooling, languages)

    def answer(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        adapters: Adapters = ACTIVE,
        *,
        languages: Languages = None,
        no_answer: float | None = 0.0,
        max_answer_tokens: int = 30,
        max_length: int = 256,
        stride: int = 64,
        batch_size: int = 32,
    ) -> list[Answer]:
        """The `Answer` to each question in its context: text, score, start and end in characters.

        One text stands for all rows. ``no_answer``: by how much the null score has to beat the best
        span's for an empty answer; None always gives a span. A long context is read in windows of
        ``max_length`` tokens that share ``stride``. Raises `HeadError` where a row's blend
        has no head for it.
        """
        task = QuestionAnswering(
            max_length=max_length,
            stride=stride,
            max_answer_tokens=max_answer_tokens,
            no_answer=no_answer,
        )
        return answer(self, task, question, context, adapters, languages, batch_size)

    def tag(
        self,
        texts: Sequence[str] | str,
        adapters: Adapters = ACTIVE,
        batch_size: int = 32,
        *,
        languages: Languages = None,
    ) -> list[list[Entity]]:
        """Each text's spans (`Entity`: text, label, score, start and end in characters), in order.

        What is behind the last position that the backbone has is in none.
        """
        return tag(self, texts_of(texts), adapters, languages, batch_size)

    # ── languages of rows ────────────────────────────────────────────────────────────────────

    def languages_of(
        self, texts: Sequence[str] | str, fallback: str | None = None
    ) -> list[RowLanguage]:
        """What ``auto`` is for each text, or ``auto?`` and a ``fallback``: language and blend.

        Each with the probability of the language among those looked for, and the reason.
        """
        return row_languages(self, texts_of(texts), fallback)

    def blends_of(
        self,
        texts: Sequence[str] | str,
        adapters: Adapters = ACTIVE,
        *,
        languages: Languages = None,
    ) -> list[Blend]:
        """The blend of each text by exact names, with ``auto`` set to its language's adapter.

        For calls that see no texts: ``model(input_ids=…, adapters=model.blends_of(texts, …))``.
        """
        return row_blends(self, texts_of(texts), adapters, languages)

    def identify_by(
        self,
        languages: Sequence[str] | None = None,
        *,
        minimum: float | None = None,
        identifier: Identifier | None = None,
    ) -> None:
        """Set how ``auto`` finds languages; what is not given is as it was at first.

        ``languages`` to look for, by default those of the library; ``minimum`` is the least
        probability (0.5); ``identifier`` takes texts and gives each text's probabilities by tag.
        """
        tags = None if languages is None else tuple(map(canonical, languages))
        self.auto = Auto(tags, minimum, identifier)

    def route(
        self,
        texts: Sequence[str] | str,
        terms: Sequence[str],
        *,
        top: int = 2,
        temperature: float = 1.0,
    ) -> list[Blend]:
        """A blend for each text of those adapters that it asks for, by their factors alone.

        Arrow's votes (arXiv:2405.11157), averaged over a text; see `inference.arrow`.
        """
        return arrow_blends(self, texts_of(texts), terms, top=top, temperature=temperature)

    # ── out ──────────────────────────────────────────────────────────────────────────────────

    def export(
        self,
        blend: Weights,
        folder: str | os.PathLike[str],
        *,
        method: str = "sum",
        rank: int | None = None,
        name: str | None = None,
        engine: str = "peft",
        dtype: str = "float32",
        **options: object,
    ) -> Path:
        """Write a blend as one standard PEFT adapter, which plain PEFT loads.

        ``engine`` writes what another one reads: vllm, sglang, gguf (llama.cpp), ollama, mlx,
        openvino, or a whole model: merged, keras. ``dtype`` is the number format in the file.

        ``method``, ``rank`` and further options are those of `compose.methods.METHODS`; the
        default is exact. ``method="svd", energy=0.95`` cuts each site to the smallest rank that
        keeps this share of the sum's energy. The head, if one adapter has one, goes along. Raises
        `HeadError` for two heads, `SettingsError` for a method or an option that cannot work.
        """
        options = options if rank is None else {"rank": rank, **options}
        source = Source(self, blend, method, options, name, dtype)
        return write_for(engine, source, Path(folder)).folder

    def merge(self, blend: Weights) -> nn.Module:
        """A plain transformers model, a copy, with the blend added into its weights.

        With a head in the blend it is the task's class. Raises `BackboneError` at 8 or 4 bits,
        where a weight cannot take a delta without being rounded again.
        """
        return merge(self, blend)


def load_backbone(
    model_or_id: str | os.PathLike[str] | PreTrainedModel = "starter",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    library: Library | str | os.PathLike[str] | None = None,
    bits: int | None = None,
    dtype: Dtype | None = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    trust_remote_code: bool = False,
    check_backbone: bool = True,
    memory: int = MEMORY,
    host_memory: int | None = None,
) -> AdaptedModel:
    """A backbone with no adapter active: ``starter``, a folder, a hub id, or a loaded model.

    ``bits``: 32 (where neither these nor a dtype are given), 16 (bfloat16), or 8 and 4 by
    bitsandbytes; a checkpoint that is stored in 8 or 4 bits has these. ``dtype`` is transformers':
    ``"auto"`` keeps the checkpoint's, ``torch.bfloat16``, ``"float16"``, …; beside 8 or 4 bits it
    is of what is not quantised. ``device_map``, ``offload_folder``, ``attn_implementation``,
    ``revision``, ``token``, ``subfolder`` and ``trust_remote_code`` are transformers' too. What a
    ``device_map`` has on ``"disk"``, or on the CPU beside a GPU, is brought in whenever it is
    called; adapters act there as anywhere, but for those on routers and experts.

    A loaded model is not copied and keeps its precision, place and attention. It is frozen and put
    into eval mode, gets a padding token where it has none, and hooks that do nothing outside of
    calls of what is returned. Its tokenizer is ``tokenizer``, else that of its checkpoint; so is
    the fingerprint, as long as it has the checkpoint's weights. One that was made from a
    configuration is named after its class, and knows only adapters that were trained on its
    weights.

    Further see `AdaptedModel`. Raises `BackboneError`, also for a model that is compiled, offloaded
    or holds PEFT's adapters, or `SettingsError` for options that cannot be or contradict each
    other, options of loading for a loaded model, and one without a tokenizer.
    """
    options = Options(bits, dtype, device, device_map, attn_implementation, offload_folder)
    name = name_of(model_or_id)
    checkpoint = Checkpoint(name, revision, token, subfolder, trust_remote_code)
    if isinstance(model_or_id, str | os.PathLike):
        backbone = read_backbone(checkpoint, options, tokenizer)
    else:
        backbone = take_model(model_or_id, checkpoint, options, tokenizer)
    if not isinstance(library, Library):
        library = Library(library)
    return AdaptedModel(
        backbone, library, memory=memory, host_memory=host_memory, check_backbone=check_backbone
    )


def load(
    language: str | None = None,
    domain: str | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    library: Library | str | os.PathLike[str] | None = None,
    bits: int | None = None,
    dtype: Dtype | None = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    trust_remote_code: bool = False,
    check_backbone: bool = True,
    memory: int = MEMORY,
    host_memory: int | None = None,
) -> AdaptedModel:
    """The backbone that a language's and a domain's adapters name, with both active.

    The language adapter has the weight that the cards say was best for the two, which is logged
    where it is not 1; 0 where adding it hurts. A language without an adapter falls back to the
    closest one within a stated distance, with a logged warning. What is no language is a blend,
    taken as it is written: an adapter's name, ``"de + hotel"``, ``"proxy:nds"``, or ``"auto"``,
    which is another adapter in each row. In either, what stands for an adapter may be where it is
    shared, ``"hf://user/repo@revision"``: it is pulled into the library, once, and from then on is
    the one that was pulled (`Library.pulled`).
    ``revision`` overrides the one that the adapters pin; other options are `load_backbone`'s.
    Raises `NotFoundError`, `AmbiguousTermError`, or `BackboneMismatchError` if the adapters name
    two backbones, or two revisions of one.
    """
    library = library if isinstance(library, Library) else Library(library)
    if not language and not domain:
        raise NotFoundError("load() needs a language or a domain; load_backbone() takes none")
    language = library.with_pulled(language, token=token) if language else None
    domain = library.with_pulled(domain, token=token) if domain else None
    infos: list[AdapterInfo] = []

    def find(term: str) -> AdapterInfo:
        infos.append(library.find(term, infos[0].fingerprint if infos else None))
        return infos[-1]

    term = domain if domain and domain.startswith("name:") else f"domain:{domain}"
    of_domain = Blend([(find(term).name, 1.0)], exact=True) if domain else Blend()
    asked = Blend.of(language_term(language, library) if language else None)
    asked = library.expand(asked, infos[0].fingerprint if infos else None)
    names: dict[str, str | None] = {}
    for term in asked.terms:
        if of_rows(term, library):
            infos += language_adapters(library, infos)
            continue
        try:
            names[term] = find(term.removesuffix("?")).name
        except NotFoundError:
            if not term.endswith("?"):
                raise
            names[term] = None
    rows = Blend([(t, w) for t, w in asked.weights if t not in names and not asked.exact])
    active = asked.expand({term: Blend() for term in rows.terms}).rename(names)
    together = not set(of_domain.terms) <= set(active.terms)  # one adapter may be of both
    name, pinned = backbone_of(infos, language or domain or "", revision)
    model = load_backbone(
        name,
        tokenizer=tokenizer,
        library=library,
        bits=bits,
        dtype=dtype,
        device=device,
        device_map=device_map,
        offload_folder=offload_folder,
        attn_implementation=attn_implementation,
        revision=pinned,
        token=token,
        subfolder=subfolder,
        trust_remote_code=trust_remote_code,
        check_backbone=check_backbone,
        memory=memory,
        host_memory=host_memory,
    )
    if together:
        if str(asked).startswith("lang:") and len(active.terms) == 1:  # not a blend with weights
            active = active * model.residents.weight_beside(active.terms[0], of_domain)
        active = active + of_domain
    model.residents.load(set(active.terms))
    return model.use(rows + active)
