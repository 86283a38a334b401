//! The activation functions that configs name.

pub use attn_core::ops::Activation;
use candle_core::{Result, bail};

/// Reads a name as transformers spells it.
///
/// # Errors
/// A name that is not known, by name.
pub(crate) fn parse(key: &str, name: &str) -> Result<Activation> {
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" | "gelu_python" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        _ => bail!("config.json: {key}: unknown activation `{name}`"),
    })
}
