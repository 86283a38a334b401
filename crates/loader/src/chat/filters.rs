//! Filters and methods that replace those of the interpreter: JSON is written as transformers writes it, and every
//! filter limits how many items it makes room for. The interpreter's own filters take any number, and a process that
//! asks for more memory than there is ends without an error.

use minijinja::value::{Kwargs, Rest, StringInput};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

/// The most items, spaces or digits that a filter may be asked for at once.
const MOST: usize = 1 << 16;

/// Adds them all.
pub(super) fn add(env: &mut Environment) {
    env.set_unknown_method_callback(|state, value, method, args| {
        if method == "format"
            && let Some(text) = value.as_str()
        {
            check_format(text, args)?;
        }
        unknown_method_callback(state, value, method, args)
    });
    env.add_filter("tojson", tojson);
    env.add_filter("batch", |state: &State, value: Value, count: usize, fill: Option<Value>| {
        filters::batch(state, value, bounded(count)?, fill)
    });
    env.add_filter("slice", |state: &State, value: Value, count: usize, fill: Option<Value>| {
        filters::slice(state, value, bounded(count)?, fill)
    });
    env.add_filter("indent", indent);
    env.add_filter("format", |state: &State, format: Value, args: Rest<Value>| {
        check_format(format.as_str().unwrap_or_default(), &args)?;
        filters::format(state, &format, args)
    });
}

fn bounded(count: usize) -> Result<usize, Error> {
    match count {
        0..=MOST => Ok(count),
        _ => Err(too_many()),
    }
}

fn too_many() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("it asks for more than {MOST} at once"))
}

fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let named: Option<usize> = kwargs.get("width")?;
    bounded(width.or(named).unwrap_or(0))?;
    filters::indent(text, width, first, blank, kwargs)
}

/// Refuses widths and precisions past [`MOST`], written out or, for a star, among the arguments.
fn check_format(format: &str, args: &[Value]) -> Result<(), Error> {
    let mut numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let too_wide = numbers.any(|digits| digits.parse().map_or(true, |n: usize| n > MOST));
    let starred =
        format.contains('*') && args.iter().any(|arg| i64::try_from(arg.clone()).is_ok_and(|n| n > MOST as i64));
    if too_wide || starred { Err(too_many()) } else { Ok(()) }
}

/// JSON as transformers' filter writes it: not escaped for HTML, separators as Python's.
fn tojson(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let json = serde_json::to_value(&value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "can't write this as JSON").with_source(e))?;
    let indent: Option<usize> = kwargs.get("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = kwargs.get(ignored)?;
    }
    kwargs.assert_all_used()?;
    let mut out = String::new();
    write_json(&json, indent.map(|n| n.min(16)), 0, &mut out);
    Ok(out)
}

fn write_json(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    use serde_json::Value as J;
    let newline = |out: &mut String, depth: usize| {
        if let Some(n) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', n * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        J::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                newline(out, depth + 1);
                write_json(item, indent, depth + 1, out);
            }
            newline(out, depth);
            out.push(']');
        }
        J::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                newline(out, depth + 1);
                out.push_str(&J::from(key.as_str()).to_string());
                out.push_str(": ");
                write_json(item, indent, depth + 1, out);
            }
            newline(out, depth);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use crate::ChatTemplate;

    fn render(source: &str) -> Result<String, String> {
        ChatTemplate::new(source).render(&[("user", "a")], true, "", "").map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_makes_room_for_more_than_there_is() {
        for source in [
            "{{ 'abc' | list | batch(5000000000) | list }}",
            "{{ 'abc' | list | slice(5000000000) | list }}",
            "{{ 'a\nb' | indent(5000000000) }}",
            "{{ 'a\nb' | indent(width=5000000000) }}",
            "{{ '%05000000000d' | format(3) }}",
            "{{ '%.99999999999999999999f' | format(3) }}",
            "{{ '%*d' | format(5000000000, 3) }}",
            "{{ '{:>5000000000}'.format('a') }}",
        ] {
            let error = render(source).unwrap_err();
            assert!(error.contains("more than 65536 at once"), "{source}: {error}");
        }
    }

    #[test]
    fn within_reason_they_are_the_interpreters_own() {
        for (source, want) in [
            ("{{ 'abc' | list | batch(2, 'x') | list | tojson }}", r#"[["a", "b"], ["c", "x"]]"#),
            ("{{ 'abc' | list | slice(2) | list | tojson }}", r#"[["a", "b"], ["c"]]"#),
            ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
            ("{{ 'a\nb' | indent(width=2, first=true) }}", "  a\n  b"),
            ("{{ '%03d-%s-%d' | format(3, 'x', 5000000000) }}", "003-x-5000000000"),
            ("{{ '{:>3}{}'.format('a', 'b') }}", "  ab"),
        ] {
            assert_eq!(render(source).as_deref(), Ok(want), "{source}");
        }
    }
}
