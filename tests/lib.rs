//! Tests that cross crates; golden data lies beside this file.

/// The README's code, compiled and run as a documentation example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
