//! What is compared with transformers: logits in one prefill, token by token and in blocks, and greedy continuations.

use super::{Golden, difference, ids_of};
use attn_models::{Architecture, Model, RopeLength, Session};
use candle_core::{DType, IndexOp, Tensor};

fn start(golden: &Golden, length: RopeLength) -> Session {
    let mut session = Session::new(&golden.model, length, None).unwrap();
    if golden.model.architecture() == Architecture::EncoderDecoder {
        session.encode(&ids_of(golden, "input_ids"), None).unwrap();
    }
    session
}

/// Feeds the tokens in blocks of `n` under the declared length.
pub(crate) fn in_blocks(golden: &Golden, n: usize) -> Tensor {
    let ids = match golden.model.architecture() {
        Architecture::EncoderDecoder => ids_of(golden, "decoder_input_ids"),
        _ => ids_of(golden, "input_ids"),
    };
    let t = ids.dim(1).unwrap();
    let mut session = start(golden, RopeLength::Declared(t));
    let blocks = (0..t).step_by(n).map(|at| session.feed_all(&ids.narrow(1, at, n.min(t - at)).unwrap()).unwrap());
    Tensor::cat(&blocks.collect::<Vec<_>>(), 1).unwrap()
}

/// Compares a model with its expected values.
pub(crate) fn check(name: &str, golden: &Golden) {
    if golden.model.architecture() == Architecture::Encoder {
        let ids = ids_of(golden, "input_ids");
        let hidden = golden.model.hidden(&ids, ids.dim(1).unwrap(), None).unwrap();
        let diff = difference(&hidden, &golden.expected["hidden"]);
        assert!(diff < 1e-3, "{name}: hidden states differ by {diff}");
        return;
    }
    let logits = &golden.expected["logits"];
    for n in [usize::MAX >> 1, 1, 5, 11] {
        let diff = difference(&in_blocks(golden, n), logits);
        assert!(diff < 1e-3, "{name}: logits differ by {diff} in blocks of {n}");
    }
    if let Some(greedy) = golden.expected.get("greedy") {
        let greedy = greedy.to_dtype(DType::U32).unwrap();
        let prompt = greedy.dim(1).unwrap() - 16;
        let mut session = start(golden, RopeLength::Exact);
        let mut logits = session.feed(&greedy.narrow(1, 0, prompt).unwrap()).unwrap();
        for at in prompt..prompt + 16 {
            let next = Model::greedy(&logits).unwrap();
            let want = greedy.i((.., at)).unwrap().to_vec1::<u32>().unwrap();
            assert_eq!(next.flatten_all().unwrap().to_vec1::<u32>().unwrap(), want, "{name}: greedy token {at}");
            logits = session.feed(&next).unwrap();
        }
    }
}
