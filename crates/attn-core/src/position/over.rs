//! An encoding over another one: queries are placed by the other and then changed once more; everything else is the
//! other's. Hooks are forwarded here and nowhere else, so that none is forgotten.

use super::{BiasContext, Context, Part, PositionEncoding, Resolution};
use crate::ScoreBias;
use candle_core::{Result, Tensor};
use std::{fmt::Debug, sync::Arc};

/// What is done to queries `(b, h, t, d)` that another encoding has placed.
pub trait QueryStep: Debug + Send + Sync {
    /// The queries of the tokens `at`, changed.
    ///
    /// # Errors
    /// Queries that the step doesn't fit.
    fn change(&self, q: &Tensor, at: &Context) -> Result<Tensor>;
}

/// Another encoding, with a step after it.
#[derive(Debug, Clone)]
pub struct Over<S> {
    pub(super) inner: Arc<dyn PositionEncoding>,
    pub(super) step: S,
}

impl<S: QueryStep> PositionEncoding for Over<S> {
    fn queries(&self, q: &Tensor, at: &Context) -> Result<Tensor> {
        self.step.change(&self.inner.queries(q, at)?, at)
    }

    fn keys(&self, k: &Tensor, at: &Context) -> Result<Tensor> {
        self.inner.keys(k, at)
    }

    fn remember(&self, at: &Context, last: Option<&Tensor>) -> Result<Option<Tensor>> {
        self.inner.remember(at, last)
    }

    fn bias(&self, at: &BiasContext) -> Result<ScoreBias> {
        self.inner.bias(at)
    }

    fn sinks(&self) -> Option<Tensor> {
        self.inner.sinks()
    }

    fn parts(&self) -> &[Part] {
        self.inner.parts()
    }

    fn resolve(&self, len: usize) -> Resolution {
        self.inner.resolve(len)
    }

    fn max_positions(&self) -> Option<usize> {
        self.inner.max_positions()
    }
}
