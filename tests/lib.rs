//! Tests that cross crates; golden data lies beside this file.
