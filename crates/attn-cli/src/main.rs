//! The `attn` command.
fn main() {}
