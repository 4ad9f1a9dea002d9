"""Attention mechanisms with options that they do not take, in the folder that bad_input_workspace.py builds."""

from bad_input_cases import Case, setting


def mechanism(name: str, options: str, says: str) -> Case:
    return setting(f"generator.attention.8={{name: {name}, {options}}}", f"generator.attention.8: {says}")


MECHANISMS = [
    mechanism("self_attention", "gain: vector", "gain is 'vector'; known: scalar, none"),
    mechanism("self_attention", "place: conv", "self_attention has no place 'conv'; known: after, branch"),
    mechanism("augmented_conv", "place: conv, gain: scalar", "augmented_conv in place of a convolution has no gain"),
    mechanism("non_local", "form: cosine", "non_local: form is 'cosine'; known: embedded_gaussian, gaussian"),
    mechanism("non_local", "ratio: 0", "non_local: ratio is 0, must be a positive part of the channels"),
    mechanism("non_local", "form: dot_product, scale: true", "non_local: scale is for the Gaussian forms"),
    mechanism("double_attention", "key_ratio: -1", "double_attention: key_ratio is -1, must be a positive part"),
    mechanism("em_attention", "bases: 0", "em_attention: bases is 0, must be at least 1"),
    mechanism("em_attention", "momentum: 2", "em_attention: momentum is 2, must lie in [0, 1]"),
    mechanism("em_attention", "gradient: none", "em_attention: gradient is 'none'; known: full, detached"),
    mechanism("em_attention", "ratio: 0.01", "em_attention: 8 channels times ratio 0.01 must be at least 1"),
    mechanism("dual_attention", "sign: 2", "dual_attention: sign is 2, must be 1 or -1"),
    mechanism("augmented_conv", "value_ratio: 2", "augmented_conv: 4 key and 16 value channels of 8;"),
    mechanism("augmented_conv", "heads: 3", "augmented_conv: 3 heads must divide its 4 key and 2 value channels"),
    mechanism("gated_positional", "heads: 3", "gated_positional: 3 heads must divide 8 channels"),
    mechanism("gated_positional", "locality: 0", "gated_positional: locality is 0, it must be above 0"),
    mechanism("transformer", "heads: 5", "transformer: 5 heads must divide 8 channels"),
    mechanism("transformer", "ratio: 0", "transformer: ratio is 0, it must be at least 1"),
    mechanism("squeeze_excitation", "reduction: 0", "squeeze_excitation: reduction is 0, it must be at least 1"),
    mechanism("selective_kernel", "paths: 1", "selective_kernel: paths is 1, there must be at least 2"),
    mechanism("cbam", "kernel: 4", "cbam: kernel is 4, it must be odd: 1, 3, 5, 7"),
    mechanism("spatial_transformer", "padding: wrap", "spatial_transformer: padding is 'wrap'; known: reflection"),
    mechanism("residual_block", "equal: time", "residual_block: equal is 'time'; known: macs, parameters"),
    mechanism("squeeze_excitation", "bases: 3", "squeeze_excitation has no option 'bases'; known: reduction"),
    setting(
        "generator={channels: 6, widths: [1, 1, 1, 1], "
        "attention: {8: {name: transformer, heads: 1, position: sincos}}}",
        "transformer: position sincos needs channels divisible by 4, not 6",
    ),
    setting(
        "generator.attention.8={name: selective_kernel, norm: batch}' --set 'training.batch_size=1",
        "generator.attention.8: selective_kernel with norm batch needs at least 2 images at once",
    ),
    setting("discriminator.attention.16={name: selective_kernel, place: conv}", "needs equal widths"),
]
