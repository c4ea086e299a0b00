"""Names that are easier to type than the ids of the Hugging Face hub."""

SHORT_NAMES: dict[str, str] = {
    "ViT-B-32": "openai/clip-vit-base-patch32",
    "ViT-B-16": "openai/clip-vit-base-patch16",
    "ViT-L-14": "openai/clip-vit-large-patch14",
    "ViT-L-14-336": "openai/clip-vit-large-patch14-336",
    "ViT-B-32-laion2b": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "ViT-B-16-laion2b": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    "ViT-L-14-laion2b": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    "ViT-H-14-laion2b": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "ViT-g-14-laion2b": "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
    "ViT-bigG-14-laion2b": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "ViT-B-32-datacomp": "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
    "ViT-B-16-datacomp": "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
    "ViT-L-14-datacomp": "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
    "ViT-B-32-metaclip": "facebook/metaclip-b32-fullcc2.5b",
    "ViT-B-16-metaclip": "facebook/metaclip-b16-fullcc2.5b",
    "ViT-L-14-metaclip": "facebook/metaclip-l14-fullcc2.5b",
    "ViT-H-14-metaclip": "facebook/metaclip-h14-fullcc2.5b",
    "siglip-base": "google/siglip-base-patch16-224",
    "siglip-base-256": "google/siglip-base-patch16-256",
    "siglip-base-384": "google/siglip-base-patch16-384",
    "siglip-base-512": "google/siglip-base-patch16-512",
    "siglip-large-256": "google/siglip-large-patch16-256",
    "siglip-large-384": "google/siglip-large-patch16-384",
    "siglip-so400m": "google/siglip-so400m-patch14-384",
    "siglip2-base": "google/siglip2-base-patch16-224",
    "siglip2-base-512": "google/siglip2-base-patch16-512",
    "siglip2-so400m": "google/siglip2-so400m-patch14-384",
    "dinov2-small": "facebook/dinov2-small",
    "dinov2-base": "facebook/dinov2-base",
    "dinov2-large": "facebook/dinov2-large",
    "dinov2-giant": "facebook/dinov2-giant",
    "dinov3-small": "facebook/dinov3-vits16-pretrain-lvd1689m",
    "dinov3-base": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    "all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
    "paraphrase-multilingual-mpnet-base-v2": "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
    "multilingual-e5-small": "intfloat/multilingual-e5-small",
    "multilingual-e5-base": "intfloat/multilingual-e5-base",
    "multilingual-e5-large": "intfloat/multilingual-e5-large",
    "bge-base-en-v1.5": "BAAI/bge-base-en-v1.5",
}
"""Short name -> hub id of a checkpoint in the layout of transformers: CLIP as open_clip and its paper write the names,
then SigLIP, DINO (the third is gated: its terms must be accepted on the hub), and sentence encoders."""


def short_name(name: str) -> str | None:
    """Spell a short name as the table does, however it was typed.

    >>> short_name("vit-l/14@336px")
    'ViT-L-14-336'
    """
    typed = name.lower().replace("/", "-").replace("@336px", "-336")
    return next((short for short in SHORT_NAMES if short.lower() == typed), None)
