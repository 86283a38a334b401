//! Text inside HTML and SVG.

/// `text` with escapes, for use between tags and inside double-quoted attributes; control characters are left out.
pub(crate) fn escape(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control());
    printable.fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
        out
    })
}

/// JSON for use inside a `<script>`: nothing in it can end the element or begin a comment.
pub(crate) fn script_json(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// Checks what a strict parser needs: tags nest and close, and text has no bare `&` or `<`. `void` are the elements without an
/// end tag.
#[cfg(test)]
pub(crate) fn assert_well_formed(text: &str, void: &[&str]) {
    let mut open: Vec<String> = vec![];
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        assert!(!tag.contains('<') && tag.matches('"').count().is_multiple_of(2), "{tag}");
        let name = tag.trim_start_matches('/').split(|c: char| c.is_whitespace()).next().unwrap().to_string();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') && !void.contains(&name.as_str()) {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "left open: {open:?}");
    for (i, _) in text.match_indices('&') {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
        assert!(known.iter().any(|e| text[i..].starts_with(e)), "{}", &text[i..(i + 20).min(text.len())]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out() {
        assert_eq!(escape("<b a=\"1\" c='2'>&\u{7}"), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;");
        let nasty = serde_json::json!({"</script><!--": "<script>&\u{2028}"}).to_string();
        let safe = script_json(&nasty);
        assert!(!safe.contains('<') && !safe.contains('>') && !safe.contains('&'), "{safe}");
        let (back, was): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(&safe).unwrap(), serde_json::from_str(&nasty).unwrap());
        assert_eq!(back, was);
    }
}
