//! Turns panics of a dependency into errors.
//!
//! `tokenizers` expects a tokenizer.json without faults: a truncated decoder, a template that names an undefined token,
//! or a prefix longer than a merge make it panic, in some cases only when it is given a text. A bad file has to give an
//! error, so calls of `tokenizers` are guarded.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

thread_local! {
    /// Whether a panic of this thread is about to be caught here.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; if it panics, returns the panic's message in one line.
///
/// Nothing that `f` could leave half-changed may be used after a panic.
pub(crate) fn guard<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    // Panics that are caught below are not printed; all others go to the previous hook.
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                before(info);
            }
        }));
    });
    let outer = CAUGHT.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    CAUGHT.set(outer);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

#[cfg(test)]
mod tests {
    use super::guard;

    #[test]
    fn panics_become_errors() {
        assert_eq!(guard(|| 3), Ok(3));
        assert_eq!(guard(|| panic!("a\n {}", 1)), Err::<(), _>("a 1".to_string()));
        assert_eq!(guard(|| [0][std::hint::black_box(4)]).map_err(|e| e.contains("out of bounds")), Err(true));
    }
}
