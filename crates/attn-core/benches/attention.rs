//! `attend()` over the shapes of the tables in `docs/src/speed.md`: `cargo bench -p attn-core`.
//!
//! Every case is compared with the reference kernel before it is timed, at a length that the reference can take. `attn
//! bench attention` times any other shape, and `scripts/benchmarks/bench_peers.py` puts torch beside it.

use attn_core::attention::reference;
use attn_core::{AttendArgs, Mask, ScoreBias, attend};
use candle_core::{DType, Device, Result, Tensor, Var};
use divan::Bencher;

fn main() {
    divan::main();
}

/// A call: SmolLM2's heads unless a case says otherwise.
#[derive(Clone, Copy)]
struct Case {
    dtype: DType,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    queries: usize,
    keys: usize,
    window: Option<usize>,
    bias: fn(Case) -> Result<ScoreBias>,
}

impl Case {
    fn new(seq: usize) -> Self {
        Self {
            dtype: DType::F32,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            queries: seq,
            keys: seq,
            window: None,
            bias: |_| Ok(ScoreBias::None),
        }
    }

    fn decode(keys: usize) -> Self {
        Self { queries: 1, ..Self::new(keys) }
    }

    fn inputs(self) -> Result<([Tensor; 3], AttendArgs)> {
        let random = |h: usize, t: usize| -> Result<Tensor> {
            Tensor::randn(0f32, 1., (1, h, t, self.head_dim), &Device::Cpu)?.to_dtype(self.dtype)
        };
        let qkv =
            [random(self.heads, self.queries)?, random(self.kv_heads, self.keys)?, random(self.kv_heads, self.keys)?];
        let args = AttendArgs::causal(self.head_dim, self.queries, self.keys)?
            .with_bias((self.bias)(self)?)
            .with_mask(Mask::causal().with_window(self.window));
        Ok((qkv, args))
    }

    /// The same at a length whose scores fit in memory.
    fn short(self) -> Self {
        let keys = self.keys.min(600);
        Self { keys, queries: self.queries.min(keys), ..self }
    }

    fn check(self) -> Result<()> {
        let ([q, k, v], args) = self.short().inputs()?;
        let (ours, exact) = (attend(&q, &k, &v, &args)?, reference::attend(&q, &k, &v, &args)?);
        let (ours, exact) = (ours.to_dtype(DType::F32)?, exact.to_dtype(DType::F32)?);
        let largest = |x: &Tensor| x.abs()?.max_all()?.to_scalar::<f32>();
        let error = largest(&(ours - &exact)?)? / largest(&exact)?;
        let tolerance = if self.dtype == DType::F32 { 2e-5 } else { 2e-2 };
        assert!(error <= tolerance, "off by {error:e} of the largest value");
        Ok(())
    }

    fn bench(self, bencher: Bencher) {
        self.check().expect("a result");
        let ([q, k, v], args) = self.inputs().expect("inputs");
        bencher.bench_local(|| attend(&q, &k, &v, &args).expect("a result"));
    }
}

#[divan::bench(args = [512, 2048, 4096, 8192])]
fn causal_f32(bencher: Bencher, seq: usize) {
    Case::new(seq).bench(bencher);
}

#[divan::bench(args = [512, 2048, 4096, 8192])]
fn causal_bf16(bencher: Bencher, seq: usize) {
    Case { dtype: DType::BF16, ..Case::new(seq) }.bench(bencher);
}

#[divan::bench(args = [4096])]
fn causal_f32_32_heads_on_8_of_128(bencher: Bencher, seq: usize) {
    Case { heads: 32, kv_heads: 8, head_dim: 128, ..Case::new(seq) }.bench(bencher);
}

#[divan::bench(args = [4096])]
fn alibi(bencher: Bencher, seq: usize) {
    let bias = |case: Case| {
        let slopes = (0..case.heads).map(|h| (-8.0 * (h + 1) as f32 / case.heads as f32).exp2());
        Ok(ScoreBias::Linear { slopes: Tensor::from_iter(slopes, &Device::Cpu)? })
    };
    Case { bias, ..Case::new(seq) }.bench(bencher);
}

#[divan::bench(args = [4096])]
fn relative_bias(bencher: Bencher, seq: usize) {
    let bias = |case: Case| {
        let table = Tensor::randn(0f32, 1., (case.heads, 2 * case.keys), &Device::Cpu)?;
        Ok(ScoreBias::Relative { table, first: -(case.keys as i64) })
    };
    Case { bias, ..Case::new(seq) }.bench(bencher);
}

#[divan::bench(args = [4096])]
fn dense_bias(bencher: Bencher, seq: usize) {
    let bias = |case: Case| {
        Tensor::randn(0f32, 1., (1, case.heads, case.queries, case.keys), &Device::Cpu).map(ScoreBias::Dense)
    };
    Case { bias, ..Case::new(seq) }.bench(bencher);
}

#[divan::bench(args = [8192])]
fn window_of_512(bencher: Bencher, seq: usize) {
    Case { window: Some(512), ..Case::new(seq) }.bench(bencher);
}

#[divan::bench(args = [4096, 32768])]
fn decode_f32(bencher: Bencher, keys: usize) {
    Case::decode(keys).bench(bencher);
}

#[divan::bench(args = [4096, 32768])]
fn decode_bf16(bencher: Bencher, keys: usize) {
    Case { dtype: DType::BF16, ..Case::decode(keys) }.bench(bencher);
}

#[divan::bench(args = [2048])]
fn forward_and_backward(bencher: Bencher, seq: usize) {
    let case = Case::new(seq);
    case.check().expect("a result");
    let ([q, k, v], args) = case.inputs().expect("inputs");
    let [q, k, v] = [q, k, v].map(|x| Var::from_tensor(&x).expect("a variable"));
    bencher.bench_local(|| {
        let out = attend(q.as_tensor(), k.as_tensor(), v.as_tensor(), &args).expect("a result");
        out.sum_all().and_then(|sum| sum.backward()).expect("gradients")
    });
}
