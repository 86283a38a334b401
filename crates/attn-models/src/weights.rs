//! Where a model's tensors come from, as the models see it: names in, tensors out.

use attn_core::{BlockFormat, Blocks};
use candle_core::{DType, Device, Result, Shape, Tensor};

/// A checkpoint's tensors under their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`).
///
/// The loader implements it for safetensors shards and GGUF files; anything that can name and produce tensors may.
pub trait TensorSource: Send + Sync {
    /// The shape of tensor `name`, or `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<Shape>;

    /// The dtype tensor `name` is stored in; for quantised blocks `None`.
    fn dtype(&self, name: &str) -> Option<DType>;

    /// Reads tensor `name` onto `device` as `dtype`, dequantising if it has to.
    ///
    /// # Errors
    /// The tensor is missing or can't be read; the message names the file and the tensor.
    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor>;

    /// Reads several tensors of equal rows as one, under each other; with room for the whole from the start, if the
    /// source can.
    ///
    /// # Errors
    /// As [`load`](Self::load), and for rows that differ.
    fn load_rows(&self, names: &[&str], dtype: DType, device: &Device) -> Result<Tensor> {
        load_then_stack(self, names, dtype, device)
    }

    /// Whether gradients are tracked of tensor `name`, so that what is made of it should suit training.
    fn is_tracked(&self, _name: &str) -> bool {
        false
    }

    /// Tensor `name` in its quantised blocks, if that is how it is stored and the source is asked to keep them.
    fn quantized(&self, _name: &str, _device: &Device) -> Result<Option<Blocks>> {
        Ok(None)
    }

    /// The format of the blocks in which [`quantized`](Self::quantized) would return tensor `name`, without reading it.
    fn block_format(&self, _name: &str) -> Option<BlockFormat> {
        None
    }

    /// All names, sorted.
    fn names(&self) -> Vec<String>;
}

/// [`TensorSource::load_rows`] for any source: each tensor, then a copy of all of them.
///
/// # Errors
/// Those of [`TensorSource::load_rows`].
pub fn load_then_stack<S: TensorSource + ?Sized>(
    source: &S,
    names: &[&str],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    Tensor::cat(&names.iter().map(|name| source.load(name, dtype, device)).collect::<Result<Vec<_>>>()?, 0)
}

/// Tensors already in memory, such as those of a `VarMap`.
impl<S: std::hash::BuildHasher + Send + Sync> TensorSource for std::collections::HashMap<String, Tensor, S> {
    fn shape(&self, name: &str) -> Option<Shape> {
        self.get(name).map(|t| t.shape().clone())
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.get(name).map(Tensor::dtype)
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        match self.get(name) {
            Some(tensor) => tensor.to_device(device)?.to_dtype(dtype),
            None => candle_core::bail!("tensor {name} is missing"),
        }
    }

    fn is_tracked(&self, name: &str) -> bool {
        self.get(name).is_some_and(Tensor::track_op)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.keys().cloned().collect();
        names.sort();
        names
    }
}
