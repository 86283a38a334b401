//! From specs to modules: reads the tensors that a spec names, and notices those that no spec names.

use crate::TensorSource;
use crate::spec::{
    FusedLayout, HeadBias, HeadSpec, LatentSpec, LinearSpec, ModelSpec, MultiHeadSpec, NormSpec, QkvSpec, TableSpec,
};
use crate::tokens::Tokens;
use attn_core::position::{Sinusoidal, SinusoidalConfig, SinusoidalLayout};
use attn_core::{
    AttentionConfig, AttentionParts, Blocks, LatentAttention, LatentConfig, LatentParts, Linear, MultiHeadAttention,
    Norm, PositionEncoding, Projections, QueryProjection,
};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::{cell::RefCell, collections::HashMap, sync::Arc};

/// A source of tensors under a prefix, in one dtype on one device, that remembers what was read.
pub(crate) struct Builder<'a> {
    source: &'a dyn TensorSource,
    prefix: String,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
    used: RefCell<HashMap<String, usize>>,
    /// Warnings for the user of the model.
    warnings: RefCell<Vec<String>>,
}

/// The name of the output projection in nearly every family.
const HEAD: &str = "lm_head";

impl<'a> Builder<'a> {
    /// Picks the first of the spec's prefixes under which the token embedding is found.
    pub(crate) fn new(source: &'a dyn TensorSource, spec: &ModelSpec, dtype: DType, device: &Device) -> Result<Self> {
        let embedding = &spec.stack.embedding.tokens;
        let found = spec.prefixes.iter().find(|p| source.shape(&format!("{p}{embedding}")).is_some());
        let Some(prefix) = found.or(spec.prefixes.first()) else { bail!("{}: no tensor prefix", spec.family) };
        let (prefix, device) = (prefix.clone(), device.clone());
        Ok(Self { source, prefix, dtype, device, used: RefCell::default(), warnings: RefCell::default() })
    }

    /// The checkpoint's name of a tensor: heads live outside the prefix of the bare model.
    fn full(&self, name: &str) -> String {
        let full = format!("{}{name}", self.prefix);
        if self.source.shape(&full).is_none() && self.source.shape(name).is_some() { name.to_string() } else { full }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.source.shape(&self.full(name)).is_some()
    }

    /// Tensor `name` of `shape`.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.tensor_as(name, shape, self.dtype)
    }

    /// Tensor `name` of `shape` in a dtype of its own.
    pub(crate) fn tensor_as(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let full = self.checked(name, shape)?;
        let tensor = self.source.load(&full, dtype, &self.device)?;
        self.used.borrow_mut().insert(full, tensor.elem_count());
        Ok(tensor)
    }

    /// The checkpoint's name of a tensor that, if it is there, has to have this shape.
    fn checked(&self, name: &str, shape: &[usize]) -> Result<String> {
        let full = self.full(name);
        match self.source.shape(&full) {
            Some(found) if found.dims() != shape => {
                bail!("tensor {full} has shape {:?}, the config asks for {shape:?}", found.dims())
            }
            _ => Ok(full),
        }
    }

    /// The table of a position encoding.
    pub(crate) fn table(&self, spec: &TableSpec, shape: [usize; 2], dtype: DType) -> Result<Tensor> {
        if !spec.or_sinusoids || self.contains(&spec.name) {
            return self.tensor_as(&spec.name, &shape, dtype);
        }
        let layout = SinusoidalLayout::Concatenated;
        let sinusoids = Sinusoidal::new(SinusoidalConfig { layout, ..SinusoidalConfig::new(shape[1]) })?;
        let rows = (0..shape[0]).flat_map(|position| sinusoids.at(position)).collect::<Vec<f64>>();
        Tensor::from_vec(rows, &shape, &self.device)?.to_dtype(dtype)
    }

    pub(crate) fn norm(&self, prefix: &str, spec: &NormSpec) -> Result<Norm> {
        let Some(name) = &spec.name else { return Ok(Norm::new(spec.kind, None, None, spec.eps)) };
        let mut weight = match spec.split_rows {
            false => self.tensor(&format!("{prefix}{name}.weight"), &spec.shape)?,
            true => {
                let row = |i| self.tensor(&format!("{prefix}{name}.norms.{i}.weight"), &spec.shape[1..]);
                Tensor::stack(&(0..spec.shape[0]).map(row).collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        if spec.unit_offset {
            // Added in f32: bf16 would round 1 + w before it is used.
            weight = (weight.to_dtype(DType::F32)? + 1.0)?;
        }
        let bias = match spec.bias {
            true => Some(self.tensor(&format!("{prefix}{name}.bias"), &spec.shape)?),
            false => None,
        };
        Ok(Norm::new(spec.kind, Some(weight), bias, spec.eps))
    }

    pub(crate) fn linear(&self, prefix: &str, spec: &LinearSpec) -> Result<Linear> {
        self.linear_with(prefix, spec, self.bias(prefix, spec)?)
    }

    /// A product with a bias from elsewhere.
    fn linear_with(&self, prefix: &str, spec: &LinearSpec, bias: Option<Tensor>) -> Result<Linear> {
        let name = format!("{prefix}{}", spec.name);
        if !spec.transposed
            && let Some(weight) = self.quantized(&format!("{name}.weight"), [spec.out_dim, spec.in_dim])?
        {
            return Linear::quantized(weight, bias);
        }
        Linear::new(self.weight(prefix, spec)?, bias)
    }

    /// Tensor `name` in its blocks, if it stays in them.
    fn quantized(&self, name: &str, want: [usize; 2]) -> Result<Option<Blocks>> {
        let full = self.full(name);
        let Some(weight) = self.source.quantized(&full, &self.device)? else { return Ok(None) };
        let found = weight.dims2()?;
        if <[usize; 2]>::from(found) != want {
            bail!("tensor {full} has shape {found:?}, the config asks for {want:?}")
        }
        self.used.borrow_mut().insert(full, found.0 * found.1);
        Ok(Some(weight))
    }

    /// The token embedding `(vocab, hidden)`.
    pub(crate) fn tokens(&self, name: &str, vocab: usize, hidden: usize) -> Result<Tokens> {
        match self.quantized(name, [vocab, hidden])? {
            Some(blocks) => Ok(Tokens::Quantized(blocks, self.dtype, self.device.clone())),
            None => Ok(Tokens::Dense(self.tensor(name, &[vocab, hidden])?)),
        }
    }

    fn weight(&self, prefix: &str, spec: &LinearSpec) -> Result<Tensor> {
        let name = format!("{prefix}{}.weight", spec.name);
        match spec.transposed {
            true => self.tensor(&name, &[spec.in_dim, spec.out_dim])?.t()?.contiguous(),
            false => self.tensor(&name, &[spec.out_dim, spec.in_dim]),
        }
    }

    fn bias(&self, prefix: &str, spec: &LinearSpec) -> Result<Option<Tensor>> {
        if !spec.bias {
            return Ok(None);
        }
        Ok(Some(self.tensor(&format!("{prefix}{}.bias", spec.name), &[spec.out_dim])?))
    }

    /// Several products over the same input as one, rows in order, unless their weights stay in different blocks, or they
    /// are in training and the result would be `cut` into parts: Candle makes the gradient of each part as large as the
    /// whole.
    pub(crate) fn stacked(&self, prefix: &str, specs: &[&LinearSpec], cut: bool) -> Result<Option<Linear>> {
        let format = |s: &LinearSpec| self.source.block_format(&self.full(&format!("{prefix}{}.weight", s.name)));
        let is_tracked = |s: &&LinearSpec| self.source.is_tracked(&self.full(&format!("{prefix}{}.weight", s.name)));
        if cut && specs.iter().any(is_tracked) {
            return Ok(None);
        }
        let formats: Vec<_> = specs.iter().map(|s| format(s)).collect();
        if formats.iter().any(|f| *f != formats[0]) || (formats[0].is_some() && !self.device.is_cpu()) {
            return Ok(None);
        }
        if specs.iter().any(|s| s.bias) && !specs.iter().all(|s| s.bias) {
            return Ok(None);
        }
        let biases = specs.iter().filter_map(|s| self.bias(prefix, s).transpose()).collect::<Result<Vec<_>>>()?;
        let bias = if biases.is_empty() { None } else { Some(Tensor::cat(&biases, 0)?) };
        if formats[0].is_some() {
            return Ok(Some(Linear::quantized(self.stacked_blocks(prefix, specs)?, bias)?));
        }
        Ok(Some(Linear::new(self.stacked_rows(prefix, specs)?, bias)?))
    }

    /// The weights of several products under each other.
    fn stacked_rows(&self, prefix: &str, specs: &[&LinearSpec]) -> Result<Tensor> {
        if specs.iter().any(|s| s.transposed) {
            let weights = specs.iter().map(|s| self.weight(prefix, s)).collect::<Result<Vec<_>>>()?;
            return Tensor::cat(&weights, 0);
        }
        let name = |s: &LinearSpec| self.checked(&format!("{prefix}{}.weight", s.name), &[s.out_dim, s.in_dim]);
        let names = specs.iter().map(|s| name(s)).collect::<Result<Vec<_>>>()?;
        let refs: Vec<&str> = names.iter().map(String::as_str).collect();
        let weight = self.source.load_rows(&refs, self.dtype, &self.device)?;
        let counts = specs.iter().map(|s| s.out_dim * s.in_dim);
        self.used.borrow_mut().extend(names.into_iter().zip(counts));
        Ok(weight)
    }

    /// Rows of blocks of one format under each other.
    fn stacked_blocks(&self, prefix: &str, specs: &[&LinearSpec]) -> Result<Blocks> {
        let blocks = |spec: &&LinearSpec| {
            let name = format!("{prefix}{}.weight", spec.name);
            match self.quantized(&name, [spec.out_dim, spec.in_dim])? {
                Some(weight) => Ok(weight),
                None => bail!("tensor {} does not stay in its blocks", self.full(&name)),
            }
        };
        Blocks::stack(&specs.iter().map(blocks).collect::<Result<Vec<_>>>()?)
    }

    pub(crate) fn multi_head(
        &self,
        prefix: &str,
        hidden_size: usize,
        spec: &MultiHeadSpec,
        position: Arc<dyn PositionEncoding>,
    ) -> Result<MultiHeadAttention> {
        let config = AttentionConfig::new(hidden_size, spec.heads, spec.kv_heads)
            .with_head_dim(spec.head_dim)
            .with_scale(spec.scale)
            .with_softcap(spec.softcap)
            .with_qkv_clip(spec.qkv_clip)
            .with_temperature(spec.temperature)
            .with_mask(spec.mask.clone());
        let mut parts = AttentionParts::new(self.projections(prefix, spec)?, self.linear(prefix, &spec.out)?);
        let own_keys = spec.source.is_none();
        if let Some((q, k, place)) = &spec.qk_norm {
            let k = if own_keys { Some(self.norm(prefix, k)?) } else { None };
            parts = parts.with_qk_norm(Some(self.norm(prefix, q)?), k, *place);
        }
        if let Some(norm) = spec.v_norm.as_ref().filter(|_| own_keys) {
            parts = parts.with_v_norm(Some(self.norm(prefix, norm)?));
        }
        if let Some(sinks) = &spec.sinks {
            parts = parts.with_sinks(Some(self.tensor_as(&format!("{prefix}{sinks}"), &[spec.heads], DType::F32)?));
        }
        MultiHeadAttention::from_parts(config, parts, position)
    }

    fn projections(&self, prefix: &str, spec: &MultiHeadSpec) -> Result<Projections> {
        match &spec.qkv {
            QkvSpec::Separate { q, k, v } => {
                // Cross-attention needs them apart.
                let together = if spec.mask.causal { self.stacked(prefix, &[q, k, v], true)? } else { None };
                match together {
                    Some(fused) => Ok(Projections::Fused(fused)),
                    None => Ok(Projections::Separate {
                        q: self.linear(prefix, q)?,
                        k: self.linear(prefix, k)?,
                        v: self.linear(prefix, v)?,
                    }),
                }
            }
            QkvSpec::Queries(q) => Ok(Projections::Queries(self.linear(prefix, q)?)),
            QkvSpec::Fused { qkv, layout: FusedLayout::Blocks } => Ok(Projections::Fused(self.linear(prefix, qkv)?)),
            QkvSpec::Fused { qkv, layout } => {
                let order = match layout {
                    FusedLayout::QueryValueKey { parts } => blocks_from_parts(qkv.out_dim / 3, *parts, &self.device)?,
                    _ => blocks_from_groups(spec.heads, spec.kv_heads, spec.head_dim, &self.device)?,
                };
                let weight = self.weight(prefix, qkv)?.index_select(&order, 0)?;
                let bias = self.bias(prefix, qkv)?.map(|b| b.index_select(&order, 0)).transpose()?;
                Ok(Projections::Fused(Linear::new(weight, bias)?))
            }
        }
    }

    pub(crate) fn latent(
        &self,
        prefix: &str,
        hidden_size: usize,
        spec: &LatentSpec,
        position: Arc<dyn PositionEncoding>,
        scale: f64,
    ) -> Result<LatentAttention> {
        /// DeepSeek's norms on the latents ignore the config's epsilon.
        const EPS: f64 = 1e-6;
        let (h, r, dk, dr) = (spec.heads, spec.kv_lora_rank, spec.qk_nope_head_dim, spec.qk_rope_head_dim);
        let linear = |name: &str, i, o, bias| self.linear(prefix, &LinearSpec::new(name, i, o).bias(bias));
        let q = match spec.q_lora_rank {
            None => QueryProjection::Full(linear("q_proj", hidden_size, h * (dk + dr), false)?),
            Some(rank) => QueryProjection::LowRank {
                a: linear("q_a_proj", hidden_size, rank, spec.bias)?,
                norm: self.norm(prefix, &NormSpec::rms("q_a_layernorm", rank, EPS))?,
                b: linear("q_b_proj", rank, h * (dk + dr), false)?,
            },
        };
        let parts = LatentParts {
            q,
            kv_a: linear("kv_a_proj_with_mqa", hidden_size, r + dr, spec.bias)?,
            kv_a_norm: self.norm(prefix, &NormSpec::rms("kv_a_layernorm", r, EPS))?,
            kv_b: self.weight(prefix, &LinearSpec::new("kv_b_proj", r, h * (dk + spec.v_head_dim)))?,
            out: linear("o_proj", h * spec.v_head_dim, hidden_size, spec.bias)?,
        };
        let config = LatentConfig::new(hidden_size, h, r, (dk, dr, spec.v_head_dim)).with_scale(scale);
        LatentAttention::new(config, parts, position)
    }

    /// The output head; shares the embedding's tensor if it is tied.
    pub(crate) fn head(&self, spec: &HeadSpec, embedding: &Tokens) -> Result<Linear> {
        let (vocab, width) = embedding.dims2()?;
        let bias = match &spec.bias {
            Some(HeadBias { name, optional: true, .. }) if !self.contains(name) => None,
            Some(HeadBias { name, shape, .. }) => Some(self.tensor(name, shape)?.flatten_all()?),
            None => None,
        };
        match spec.name.as_ref().filter(|name| !spec.or_tied || self.contains(&format!("{name}.weight"))) {
            Some(name) => self.linear_with("", &LinearSpec::new(name, width, vocab), bias),
            None if spec.name.is_none() && self.has_another_head(embedding)? => {
                self.warnings.borrow_mut().push(format!(
                    "the config ties the head to the embedding, but the checkpoint has another {HEAD}.weight, which is used"
                ));
                self.linear_with("", &LinearSpec::new(HEAD, width, vocab), bias)
            }
            None => embedding.tied_head(bias),
        }
    }

    /// Whether the checkpoint of a tied model has a separate head that differs from the embedding: transformers 5 uses
    /// it then.
    fn has_another_head(&self, embedding: &Tokens) -> Result<bool> {
        let full = self.full(&format!("{HEAD}.weight"));
        if self.source.shape(&full).is_none() {
            return Ok(false);
        }
        let Tokens::Dense(table) = embedding else { return Ok(true) };
        let head = self.source.load(&full, self.dtype, &self.device)?;
        Ok(head.dims() != table.dims() || head.ne(table)?.max_all()?.to_scalar::<u8>()? != 0)
    }

    /// Warnings for the user of the model.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.borrow().clone()
    }

    /// Numbers in all tensors read so far; shared ones count once.
    pub(crate) fn parameters(&self) -> usize {
        self.used.borrow().values().sum()
    }

    /// Refuses a checkpoint with tensors that the model did not use: a bias or norm that is silently left out gives
    /// results that are wrong and look fine.
    pub(crate) fn finish(&self, spec: &ModelSpec) -> Result<()> {
        /// Buffers that older checkpoints carry along, and heads for training.
        const BUFFERS: &[&str] = &[
            "rotary_emb.inv_freq",
            ".attn.bias",
            ".attn.masked_bias",
            ".attention.bias",
            ".attention.masked_bias",
            "position_ids",
            "rotary_pos_emb",
        ];
        let used = self.used.borrow();
        let names = self.source.names();
        let stray = names.iter().find(|name| {
            !used.contains_key(*name)
                && !BUFFERS.iter().any(|b| name.ends_with(b))
                && !spec.unused.iter().any(|part| name.contains(part))
        });
        match stray {
            None => Ok(()),
            Some(name) => bail!(
                "the checkpoint has a tensor {name} that a {} model with this config does not use: the result would be \
                 wrong",
                spec.family
            ),
        }
    }
}

/// Row order that turns parts of (queries, values, keys) each into all queries, all keys, all values of `width` rows.
fn blocks_from_parts(width: usize, parts: usize, device: &Device) -> Result<Tensor> {
    let share = width / parts;
    let block =
        |i: usize| (0..parts).flat_map(move |part| (0..share).map(move |row| ((part * 3 + i) * share + row) as u32));
    Tensor::from_iter(block(0).chain(block(2)).chain(block(1)), device)
}

/// Row order that turns groups of (queries, key, value) per kv head into all queries, all keys, all values.
fn blocks_from_groups(heads: usize, kv_heads: usize, d: usize, device: &Device) -> Result<Tensor> {
    let group = heads / kv_heads + 2;
    let head = |kv: usize, i: usize| (0..d).map(move |lane| ((kv * group + i) * d + lane) as u32);
    let q = (0..kv_heads).flat_map(|kv| (0..group - 2).flat_map(move |i| head(kv, i)));
    let k = (0..kv_heads).flat_map(|kv| head(kv, group - 2));
    let v = (0..kv_heads).flat_map(|kv| head(kv, group - 1));
    Tensor::from_iter(q.chain(k).chain(v), device)
}
