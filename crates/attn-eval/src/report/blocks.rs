//! Small pictures that consist of Unicode block characters, for terminals of any width.

const EIGHTHS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const LEFT_EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];

/// One column per value in 0..=1: `▁` to `█`, and a space for one that is not a number.
pub fn columns(values: impl IntoIterator<Item = f64>) -> String {
    values.into_iter().map(|v| pick(&EIGHTHS, v)).collect()
}

/// One cell per value in 0..=1: `·` to `█`, for maps.
pub fn shades(values: impl IntoIterator<Item = f64>) -> String {
    values.into_iter().map(|v| pick(&SHADES, v)).collect()
}

fn pick(glyphs: &[char], value: f64) -> char {
    if value.is_nan() {
        return ' ';
    }
    glyphs[((value.clamp(0.0, 1.0) * glyphs.len() as f64) as usize).min(glyphs.len() - 1)]
}

/// A bar of up to `width` cells for a share in 0..=1, without trailing spaces.
pub fn bar(share: f64, width: usize) -> String {
    let eighths = (share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    let mut out = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        out.push(LEFT_EIGHTHS[eighths % 8 - 1]);
    }
    out
}

/// The area under a curve of values in 0..=1: `height` lines from the top, one column per value.
pub fn area(values: &[f64], height: usize) -> Vec<String> {
    let line = |row: usize| {
        let floor = (height - 1 - row) as f64;
        let cell = |v: &f64| match (v.clamp(0.0, 1.0) * height as f64 - floor) * 8.0 {
            filled if filled < 0.5 => ' ',
            filled => EIGHTHS[(filled.round() as usize).min(8) - 1],
        };
        values.iter().map(cell).collect::<String>()
    };
    (0..height).map(line).collect()
}

/// `columns` of the values, evenly spaced, the first and the last among them; all values if there are not more than that.
pub fn resample(values: &[f64], columns: usize) -> Vec<f64> {
    spread(values.len(), columns).into_iter().map(|i| values[i]).collect()
}

/// At most `n` of the indices `0..len`, evenly spaced, the first and the last among them. If `n` is below 2, it counts as 2.
pub fn spread(len: usize, n: usize) -> Vec<usize> {
    if len <= n.max(1) {
        return (0..len).collect();
    }
    let last = (len - 1) as f64 / (n.max(2) - 1) as f64;
    (0..n.max(2)).map(|i| (last * i as f64).round() as usize).collect()
}

/// Breaks `text` at spaces into lines of at most `width`, the second and later ones indented by two spaces.
pub fn wrap(text: &str, width: usize) -> String {
    fill(text, width, "  ")
}

/// Breaks `text` at spaces into lines of at most `width`, `indent` before the second and later ones.
pub(super) fn fill(text: &str, width: usize, indent: &str) -> String {
    let mut out = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let len = word.chars().count();
        if used > 0 && used + 1 + len > width {
            out.push('\n');
            out.push_str(indent);
            used = indent.len();
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += len;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_glyphs() {
        assert_eq!(columns([0.0, 0.5, 1.0, f64::NAN]), "▁▅█ ");
        assert_eq!(shades([0.0, 0.3, 0.99, 2.0]), "·░██");
        assert_eq!([bar(0.0, 4), bar(0.5, 4), bar(1.0, 4), bar(0.28125, 4)], ["", "██", "████", "█▏"]);
        assert_eq!(area(&[0.0, 0.25, 0.5, 1.0], 2), ["   █", " ▄██"]);
    }

    #[test]
    fn samples_keep_both_ends() {
        assert_eq!(resample(&[1.0, 2.0, 3.0, 4.0, 5.0], 3), [1.0, 3.0, 5.0]);
        assert_eq!(resample(&[1.0, 2.0], 3), [1.0, 2.0]);
        assert_eq!(spread(32, 2), [0, 31]);
        assert_eq!(spread(0, 5), [0; 0]);
    }

    #[test]
    fn text_wraps_at_spaces() {
        assert_eq!(wrap("one two three four", 10), "one two\n  three\n  four");
        assert_eq!(wrap("unbreakable", 3), "unbreakable");
    }
}
