//! Tensor names: from the ones llama.cpp gives to the ones Hugging Face checkpoints have, and what was done to the
//! values on the way, to be undone.
//!
//! An architecture lists its names ([`Name`]); nothing here knows one. A pattern's `*` stands for the number of a layer,
//! its `#` for that of an expert or a head.

use super::{
    dims::Dims,
    held::{Held, Join, Undo},
    parse::{Header, Info},
    rope,
};
use crate::error::{LoadError, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// More experts or heads than any model has.
const MAX_STACK: usize = 1 << 16;

/// Where a tensor of the file goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name {
    gguf: &'static str,
    hf: &'static str,
    how: How,
    in_layer: bool,
    exact: bool,
}

/// What llama.cpp's converter did to a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// The tensor is stored as it is.
    Same,
    /// Rows of every query head interleaved for rotary pairs.
    RotaryQ,
    /// The same of every key head.
    RotaryK,
    /// Fused q, k, v put in order by part rather than by kv head (BLOOM, GPT-NeoX, Falcon).
    Parts,
    /// One was added to a norm's weights (Gemma, Nemotron).
    PlusOne,
    /// Stored as `(out, in)` where the original has `(in, out)` (GPT-2).
    Transposed,
    /// Experts, or the norms of heads, stacked: `#` is the index into the first dimension.
    Stacked,
    /// Of every expert the `0`-th of `1` equal parts of its rows.
    StackedPart(usize, usize),
    /// The queries', keys' or values' rows of one fused tensor.
    Fused(Part),
    /// One tensor made of this one and the one named, or of this one alone.
    Joined(Join, &'static str),
}

/// A part of a fused projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
}

/// A tensor outside the layers.
pub(crate) const fn top(gguf: &'static str, hf: &'static str) -> Name {
    Name { gguf, hf, how: How::Same, in_layer: false, exact: false }
}

/// A tensor of every layer: both names are relative to it.
pub(crate) const fn layer(gguf: &'static str, hf: &'static str) -> Name {
    Name { gguf, hf, how: How::Same, in_layer: true, exact: false }
}

impl Name {
    /// Undoing what was done.
    pub(crate) const fn how(mut self, how: How) -> Self {
        self.how = how;
        self
    }

    /// Both names are whole: no `.weight` or `.bias` is carried over.
    pub(crate) const fn exact(mut self) -> Self {
        self.exact = true;
        self
    }

    /// Whether `name` is the output projection, which tells models with a head of their own.
    pub(crate) fn is_output(&self) -> bool {
        self.gguf == "output"
    }

    /// The numbers in `name` if it fits, and what follows the pattern.
    fn matches<'n>(&self, name: &'n str) -> Option<(Vec<usize>, &'n str)> {
        let (stem, suffix) = if self.exact { (name, "") } else { name.rsplit_once('.')? };
        if !self.exact && !["weight", "bias"].contains(&suffix) {
            return None;
        }
        let prefix = if self.in_layer { "blk.*." } else { "" };
        let mut found = Vec::new();
        let mut parts = stem.split('.');
        for want in prefix.split_terminator('.').chain(self.gguf.split('.')) {
            let part = parts.next()?;
            match want {
                "*" | "#" => found.push(part.parse().ok()?),
                _ if want == part => {}
                _ => return None,
            }
        }
        parts.next().is_none().then_some((found, suffix))
    }

    /// The full pattern, or name for a layer, of the other tensor that this one is joined with.
    fn other(&self, with: &str, numbers: &[usize], suffix: &str) -> String {
        let stem = if self.in_layer { format!("blk.*.{with}") } else { with.to_string() };
        fill(&stem, numbers, if self.exact { "" } else { suffix })
    }

    fn hf(&self, layers: &str, numbers: &[usize], suffix: &str) -> String {
        let stem = if self.in_layer { format!("{layers}{}", self.hf) } else { self.hf.to_string() };
        fill(&stem, numbers, suffix)
    }
}

/// Puts numbers where a pattern has `*` and `#`, in order, and the suffix behind it.
fn fill(pattern: &str, numbers: &[usize], suffix: &str) -> String {
    let mut numbers = numbers.iter();
    let parts = pattern.split('.').map(|part| match part {
        "*" | "#" => numbers.next().map_or_else(|| part.to_string(), ToString::to_string),
        _ => part.to_string(),
    });
    let mut out = parts.collect::<Vec<_>>().join(".");
    if !suffix.is_empty() {
        out.push('.');
        out.push_str(suffix);
    }
    out
}

/// The file's tensors under Hugging Face names, and the names of those that nothing asks for.
pub(crate) struct Translated {
    pub(crate) tensors: BTreeMap<String, Held>,
    pub(crate) unread: Vec<String>,
}

/// Translates every tensor of `header` by `rules`; the names of a layer's tensors begin with `layers`.
///
/// # Errors
/// A tensor whose shape can't be what its name says.
pub(crate) fn translate(
    rules: &[&Name],
    layers: &str,
    dims: &Dims,
    header: &Header,
    file: &Path,
) -> Result<Translated> {
    let mut tensors = BTreeMap::new();
    let mut read: BTreeSet<&str> = rope::TENSORS.into_iter().collect();
    for (name, info) in &header.tensors {
        let at = |reason: String| LoadError::tensor(file, name, reason);
        for rule in rules {
            if let Some((numbers, suffix)) = rule.matches(name) {
                // Layers past the last predict further tokens in training.
                let extra = name.starts_with("blk.") && numbers.first().is_some_and(|&n| n as u64 >= dims.layers);
                let held = if extra { Ok(Vec::new()) } else { hold(rule, dims, header, info, &numbers, suffix) };
                let mut other = None;
                if let How::Joined(_, with) = rule.how
                    && !with.is_empty()
                {
                    other = header.tensors.get_key_value(&rule.other(with, &numbers, suffix)).map(|(name, _)| name);
                }
                read.insert(name);
                read.extend(other.map(String::as_str));
                for (expert, held) in held.map_err(at)? {
                    let numbers = [numbers.as_slice(), expert.as_slice()].concat();
                    tensors.insert(rule.hf(layers, &numbers, if rule.exact { "" } else { suffix }), held);
                }
            }
        }
    }
    let extra = |name: &str| {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
        layer.is_some_and(|n| n >= dims.layers && n < dims.layers + dims.extra_layers)
    };
    let unread = header.tensors.keys().filter(|name| !read.contains(name.as_str()) && !extra(name));
    Ok(Translated { unread: unread.cloned().collect(), tensors })
}

/// What a rule makes of a tensor: one or more, each with the number that it adds to the name.
fn hold(
    rule: &Name,
    dims: &Dims,
    header: &Header,
    info: &Info,
    numbers: &[usize],
    suffix: &str,
) -> Result<Vec<(Vec<usize>, Held)>, String> {
    let (heads, kv_heads, d) = (dims.heads as usize, dims.kv_heads as usize, dims.head_dim as usize);
    let one = |undo: Undo| {
        undo.check(info.dims[0])?;
        Ok(vec![(Vec::new(), Held::Rows(info.clone(), undo))])
    };
    match rule.how {
        How::Same => one(Undo::None),
        How::RotaryQ => one(Undo::Interleaved { heads }),
        How::RotaryK => one(Undo::Interleaved { heads: kv_heads }),
        How::Parts => one(Undo::Parts { heads, kv_heads }),
        How::PlusOne => one(if suffix == "weight" { Undo::PlusOne } else { Undo::None }),
        How::Transposed if info.dims.len() == 2 => one(Undo::Transposed),
        How::Transposed => one(Undo::None),
        How::Stacked | How::StackedPart(..) => {
            let (part, parts) = if let How::StackedPart(i, n) = rule.how { (i, n) } else { (0, 1) };
            if info.dims.len() < 2 || info.dims[0] > MAX_STACK || !info.dims[1].is_multiple_of(parts) {
                return Err(format!("shape {:?} is not a stack", info.dims));
            }
            let rows = info.dims[1] / parts;
            let held = |i: usize| {
                let start = i * info.dims[1] + part * rows;
                let mut slice = info.rows_of(start..start + rows, info.dims[2..].iter().product())?;
                if info.dims.len() > 2 {
                    slice.dims = [&[rows], &info.dims[2..]].concat();
                } else {
                    slice.dims = vec![rows];
                }
                Ok((vec![i], Held::Rows(slice, Undo::None)))
            };
            (0..info.dims[0]).map(held).collect()
        }
        How::Fused(part) => {
            let (q, kv) = (heads * d, kv_heads * d);
            let rows = match part {
                Part::Q => 0..q,
                Part::K => q..q + kv,
                Part::V => q + kv..q + 2 * kv,
            };
            if info.dims[0] != q + 2 * kv {
                return Err(format!(
                    "{} rows, but {heads} and {kv_heads} heads of {d} have {}",
                    info.dims[0],
                    q + 2 * kv
                ));
            }
            let mut slice = info.rows_of(rows.clone(), info.dims[1..].iter().product())?;
            slice.dims[0] = rows.len();
            Ok(vec![(Vec::new(), Held::Rows(slice, Undo::None))])
        }
        How::Joined(join, with) => {
            let mut pieces = vec![info.clone()];
            if !with.is_empty() {
                let other = rule.other(with, numbers, suffix);
                pieces.push(header.tensors.get(&other).ok_or_else(|| format!("{other} is missing beside it"))?.clone());
            }
            let shape = join.shape(&pieces)?;
            Ok(vec![(Vec::new(), Held::Joined { pieces, join, shape })])
        }
    }
}
