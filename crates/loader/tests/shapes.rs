//! Any shape, dtype and place of data in a file gives a tensor of exactly that size, or an error.
#![allow(missing_docs)]

mod common;

use attn_models::TensorSource;
use candle_core::{DType, Device};
use common::{Data, safetensors, tiny_llama, values};
use loader::{Checkpoint, SafetensorsSource};
use proptest::prelude::*;
use serde_json::{Map, json};

const DTYPES: [(&str, usize); 10] = [
    ("F64", 8),
    ("F32", 4),
    ("BF16", 2),
    ("F16", 2),
    ("I64", 8),
    ("I32", 4),
    ("I16", 2),
    ("U32", 4),
    ("U8", 1),
    ("BOOL", 1),
];

/// Dimensions that real files have, and some that only hostile files have.
fn dimension() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..6, 1 => any::<u64>(), 1 => Just(1 << 32), 1 => Just(1 << 62)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn tensors_come_out_as_they_went_in(
        shapes in prop::collection::vec((prop::collection::vec(0usize..5, 0..4), 0..DTYPES.len()), 0..6),
    ) {
        let (mut header, mut at) = (Map::new(), 0);
        for (i, (shape, dtype)) in shapes.iter().enumerate() {
            let (name, size) = DTYPES[*dtype];
            let end = at + shape.iter().product::<usize>() * size;
            header.insert(format!("t{i}"), json!({"dtype": name, "shape": shape, "data_offsets": [at, end]}));
            at = end;
        }
        let source = SafetensorsSource::from_bytes("x", safetensors(&header.into(), &vec![0; at]).into()).unwrap();
        prop_assert_eq!(source.names().len(), shapes.len());
        for (i, (shape, _)) in shapes.iter().enumerate() {
            let tensor = source.load(&format!("t{i}"), DType::F32, &Device::Cpu).unwrap();
            prop_assert_eq!(tensor.dims(), shape.as_slice());
            prop_assert!(values(&tensor).iter().all(|&x| x == 0.0));
        }
    }

    #[test]
    fn a_safetensors_header_is_true_or_refused(
        shape in prop::collection::vec(dimension(), 0..5),
        dtype in 0..DTYPES.len(),
        from in 0u64..40,
        to in prop_oneof![3 => 0u64..200, 1 => any::<u64>()],
        held in 0usize..200,
    ) {
        let (name, size) = DTYPES[dtype];
        let header = json!({"t": {"dtype": name, "shape": shape, "data_offsets": [from, to]}});
        let count = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let source = SafetensorsSource::from_bytes("x", safetensors(&header, &vec![0; held]).into());
        let fits = from == 0 && to == held as u64 && count.and_then(|n| n.checked_mul(size as u64)) == Some(to);
        match source {
            Ok(source) => {
                prop_assert!(fits);
                let tensor = source.load("t", DType::F32, &Device::Cpu).unwrap();
                prop_assert_eq!(Some(tensor.elem_count() as u64), count);
            }
            Err(error) => {
                prop_assert!(!fits, "{error}");
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }

    #[test]
    fn a_gguf_table_is_true_or_refused(
        dims in prop::collection::vec(dimension(), 0..6),
        tag in 0u32..42,
        offset in prop_oneof![2 => (0u64..20).prop_map(|n| n * 32), 1 => any::<u64>()],
        held in 0usize..300,
    ) {
        let mut gguf = tiny_llama();
        let data = Data { dims, tag, bytes: vec![0; held], offset: Some(offset) };
        gguf.tensor("output_norm.weight", data);
        let folder = tempfile::tempdir().unwrap();
        let path = gguf.write(folder.path());
        let opened = Checkpoint::open(path.to_str().unwrap(), &common::offline());
        if let Ok(checkpoint) = opened {
            let name = "model.norm.weight";
            let shape = checkpoint.weights.shape(name).unwrap();
            let tensor = checkpoint.weights.load(name, DType::F32, &Device::Cpu).unwrap();
            prop_assert_eq!(tensor.shape(), &shape);
            prop_assert!(shape.elem_count() <= 2 * (held + 32) * 2);
        } else if let Err(error) = opened {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
