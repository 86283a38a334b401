//! Compiles the CUDA kernels to PTX, for the feature `cuda` alone, with the same tool and settings as Candle's own.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    cuda();
}

#[cfg(feature = "cuda")]
fn cuda() {
    let headers = ["call", "halves", "singles", "gradients", "halves_gradients", "singles_gradients", "rows"]
        .map(|name| format!("kernels/{name}.cuh"));
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("ptx.rs");
    let built = cudaforge::KernelBuilder::new()
        .source_dir("kernels")
        .watch(headers)
        .args(["-std=c++17", "-O3"])
        .build_ptx()
        .and_then(|kernels| kernels.write(out));
    if let Err(error) = built {
        panic!("compiling the CUDA kernels: {error}");
    }
    // The tensor-core kernels are empty in PTX for older devices.
    let target = cudaforge::detect_compute_cap().map_or(0, |arch| arch.base());
    println!("cargo::rustc-env=ATTN_CUDA_COMPUTE_CAP={target}");
}
