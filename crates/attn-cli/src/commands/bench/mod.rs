//! `attn bench`: speed, measured so that others can repeat it.
//!
//! Every figure is the median of several runs after some that aren't counted. Comparisons with other programs are made by
//! `scripts/benchmarks/bench_peers.py`, which runs them and this command in turn.

pub(crate) mod args;
mod attention;
mod methods;
mod model;
mod times;

use anyhow::Result;
use args::{BenchArgs, BenchCommand};

/// Runs the command.
///
/// # Errors
/// What was asked for can't be run, or gives a wrong result.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        BenchCommand::Attention(args) => attention::run(args),
        BenchCommand::Model(args) => model::run(args),
    }
}
