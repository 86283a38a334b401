//! Without the `hub` feature a hub id is refused with what to do instead.
#![cfg(not(feature = "hub"))]
#![allow(missing_docs)]

mod common;

#[test]
fn hub_ids_need_the_feature() {
    let err = loader::download("org/name", &common::offline()).unwrap_err();
    assert!(matches!(err, loader::LoadError::HubDisabled { .. }) && err.to_string().contains("feature"), "{err}");
}
