//! A safetensors file: header, and every tensor it claims to have.
#![no_main]

use attn_models::TensorSource;
use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(source) = loader::SafetensorsSource::from_bytes("fuzz", data.to_vec().into()) else { return };
    for name in source.names() {
        let _ = source.load(&name, DType::F32, &Device::Cpu);
    }
});
