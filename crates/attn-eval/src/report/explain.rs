//! An explanation of a model's position encodings for a terminal: pictures of Unicode blocks, with the numbers beside them.

use super::blocks::{area, bar, columns, resample, shades, spread, wrap};
use super::{TableStyle, factor};
use crate::encoding::effects::{AlibiHead, BiasMap, Bucket, Curve, RopeEffects, ScalingEffect, SmallestBase};
use crate::explain::{Explained, ExplainedGroup};

/// Rows of a table that lists pairs, heads or buckets; if there are more, evenly spaced ones are shown.
const ROWS: usize = 16;
/// Columns of the widest picture; more would not show more.
const WIDEST: usize = 72;

const HEADING: &str = "\x1b[1m";
const MARK: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

/// The explanation, each line ending in a newline and at most `style.width` columns wide.
pub fn explanation(explained: &Explained, style: TableStyle) -> String {
    let mut page = Page { out: String::new(), style };
    let trained =
        explained.trained_context.map_or("trained context unknown".into(), |n| format!("trained to {n} tokens"));
    page.text(&format!("model  {}: {}, {trained}", explained.model, explained.family));
    let times = explained.trained_context.map(|n| explained.length as f64 / n as f64);
    let times = times.map_or(String::new(), |times| format!(", {} times the trained context", factor(times)));
    page.text(&format!("length {} tokens{times}", explained.length));
    if let Some(caveat) = explained.caveat() {
        page.text(caveat);
    }
    for group in &explained.position {
        page.group(group);
    }
    page.out
}

struct Page {
    out: String,
    style: TableStyle,
}

impl Page {
    fn width(&self) -> usize {
        self.style.width.max(24)
    }

    /// Columns that a picture has beside `used` others.
    fn room(&self, used: usize) -> usize {
        self.width().saturating_sub(used).clamp(8, WIDEST)
    }

    fn line(&mut self, line: &str) {
        self.out.push_str(line.trim_end());
        self.out.push('\n');
    }

    fn text(&mut self, text: &str) {
        let wrapped = wrap(text, self.width());
        self.line(&wrapped);
    }

    fn heading(&mut self, text: &str) {
        let wrapped = wrap(text, self.width());
        let lines: Vec<String> = wrapped.lines().map(|line| self.paint(HEADING, line)).collect();
        self.out.push('\n');
        lines.iter().for_each(|line| self.line(line));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.style.color { format!("{code}{text}{RESET}") } else { text.to_string() }
    }

    fn group(&mut self, group: &ExplainedGroup) {
        self.heading(&title(group));
        if let Some(rope) = &group.effects.rope {
            self.rope(rope, group);
        }
        if !group.effects.heads.is_empty() {
            self.alibi(&group.effects.heads, group.effects.bias.as_ref());
        }
        if !group.effects.bucket_ranges.is_empty() {
            self.t5(&group.effects.bucket_ranges, group.effects.bias.is_some());
        }
        if let (true, Some(map)) = (group.effects.heads.is_empty(), &group.effects.bias) {
            self.bias(map);
        }
        if let Some(curve) = &group.effects.temperature {
            self.heading("Factor of the queries, by position");
            self.curve(curve, 1.0);
        }
        if let Some(curve) = &group.effects.similarity {
            self.heading("Similarity of the vectors of two positions, by distance (1 is equal)");
            self.curve(curve, 0.0);
        }
        match group.encoding.kind {
            "learned" => {
                let end = group.encoding.max_position_embeddings.unwrap_or(0);
                self.text(&format!("A table with one learned vector per position. It has {end} positions: longer sequences can't be read, and no scaling applies."));
            }
            "kerple" | "kerple-power" | "fire" | "fox" | "shaw" | "cope" | "learned-frequencies" => {
                self.text("Its effect depends on the weights and differs from layer to layer. No scaling of RoPE applies to it.");
            }
            "sandwich" => {
                self.text("Nothing here is learned or depends on the length. No scaling of RoPE applies to it.")
            }
            "nope" if group.effects.temperature.is_none() => {
                self.text("These layers get positions only through the causal mask. There is nothing to scale.");
            }
            _ => {}
        }
    }

    fn rope(&mut self, rope: &RopeEffects, group: &ExplainedGroup) {
        let trained = group.effects.trained;
        let near = group.sliding_window.or(group.chunk);
        let never_far = near.is_some_and(|near| near <= trained.unwrap_or(0));
        self.wavelengths(rope, trained);
        if let (true, Some(near)) = (never_far, near) {
            return self.text(&format!(
                "A query of these layers sees at most {near} tokens, at any length: no distance is longer than in training, \
                 so there is nothing to scale."
            ));
        }
        self.partial_turns(rope, trained);
        if !rope.scalings.is_empty() {
            self.scalings(rope, group.effects.length);
        } else if let Some(trained) = trained {
            self.heading("Scalings");
            self.text(&format!(
                "{} tokens are within the trained length of {trained}: there is nothing to scale. Give a longer --length.",
                group.effects.length
            ));
        }
        self.heading("Decay: bound on the product of a query and a key, by distance (RoFormer, section 3.4.3)");
        self.curve(&rope.decay[0], 0.0);
        if let Some(configured) = rope.decay.iter().find(|curve| curve.name == "configured") {
            self.text("The same under the scaling of the config:");
            self.curve(configured, 0.0);
        }
        self.bound(rope);
    }

    /// Each pair's wavelength as a bar on a logarithmic scale with the trained context marked on it.
    fn wavelengths(&mut self, rope: &RopeEffects, trained: Option<usize>) {
        self.heading(&match trained {
            Some(trained) => format!("Wavelengths: tokens per full turn (│ marks the trained length, {trained})"),
            None => "Wavelengths: tokens per full turn".to_string(),
        });
        let turns = trained.is_some() && self.width() >= 60;
        let used = 4 + 1 + 10 + if turns { 9 } else { 0 } + 2;
        let room = self.room(used);
        let all = rope.pairs.iter().filter_map(|pair| pair.wavelength).chain(trained.map(|n| n as f64));
        let longest = all.fold(10.0, f64::max).ln();
        let mark = trained.map(|n| (((n as f64).max(1.0).ln() / longest * room as f64) as usize).min(room - 1));
        self.line(&format!("{:>4} {:>10}{}", "pair", "tokens", if turns { "    turns" } else { "" }));
        for index in spread(rope.pairs.len(), ROWS) {
            let pair = &rope.pairs[index];
            let length = pair.wavelength.map_or("never".to_string(), number);
            let turned = match pair.trained_turns {
                Some(n) if turns => format!("{:>9}", number(n)),
                _ if turns => " ".repeat(9),
                _ => String::new(),
            };
            let share = pair.wavelength.map_or(1.0, |w| w.max(1.0).ln() / longest);
            let drawn = marked(&bar(share, room), mark);
            let past = pair.wavelength.is_none_or(|w| trained.is_some_and(|n| w > n as f64));
            let drawn = if past { self.paint(MARK, &drawn) } else { drawn };
            self.line(&format!("{index:>4} {length:>10}{turned}  {drawn}"));
        }
        if rope.pairs.len() > ROWS {
            self.text(&format!("{ROWS} of {} pairs are shown; --json has all", rope.pairs.len()));
        }
    }

    fn partial_turns(&mut self, rope: &RopeEffects, trained: Option<usize>) {
        let partial = rope.pairs.iter().filter(|pair| pair.trained_turns.is_some_and(|turns| turns < 1.0)).count();
        if let (Some(trained), true) = (trained, partial > 0) {
            self.text(&format!(
                "{partial} of {} pairs turn less than once in {trained} tokens (without scaling). In longer texts they reach angles that did not occur in training: a scaling has to slow these pairs down.",
                rope.pairs.len()
            ));
        }
    }

    /// A strip per scaling, with one column per pair, whose height shows by how much the pair's frequency is divided.
    fn scalings(&mut self, rope: &RopeEffects, length: usize) {
        self.heading(&format!("Divisor of each pair's frequency under the scalings, at {length} tokens"));
        let name = rope.scalings.iter().map(|s| s.name.len()).max().unwrap_or(0) + 2;
        let wide = self.width() >= 84;
        let room = self.room(name + if wide { 44 } else { 0 }).min(rope.pairs.len());
        let largest = rope.scalings.iter().flat_map(|s| s.divided_by.iter().flatten()).copied().fold(1.0, f64::max);
        let shown = room.max("fast → slow".chars().count());
        let ends = format!("{:name$}fast →{:>rest$}", "", "slow", rest = shown - 6);
        self.line(&if wide {
            format!("{ends}  {:>5} {:>7} {:>7} {:>9} {:>9}", "kept", "between", "divided", "at most", "cos, sin")
        } else {
            ends
        });
        for scaling in &rope.scalings {
            let strip = strip(scaling, largest, room);
            let most = scaling.divided_by.iter().flatten().copied().fold(1.0, f64::max);
            let head = format!("{:<name$}{strip:<shown$}", scaling.name);
            let times = if scaling.attention_factor == 1.0 {
                String::new()
            } else {
                format!("x {:.4}", scaling.attention_factor)
            };
            let ScalingEffect { kept, between, divided, .. } = scaling;
            if wide {
                self.line(&format!("{head}  {kept:>5} {between:>7} {divided:>7} {:>9} {times:>9}", number(most)));
            } else {
                self.line(&head);
                let times = if times.is_empty() { times } else { format!("; cos, sin {times}") };
                self.text(&format!("  {kept} kept, {between} between, {divided} by {}{times}", number(most)));
            }
        }
        self.text(&format!("· unchanged, █ divided by {}", number(largest)));
    }

    /// A curve over a logarithmic axis, from `floor` or below to its maximum.
    fn curve(&mut self, curve: &Curve, floor: f64) {
        const HEIGHT: usize = 5;
        let low = curve.values.iter().copied().fold(floor, f64::min);
        let high = curve.values.iter().copied().fold(low + 1e-9, f64::max);
        let label = number(high).len().max(number(low).len());
        let room = self.room(label + 2).min(curve.values.len());
        let shares: Vec<f64> = curve.values.iter().map(|v| (v - low) / (high - low)).collect();
        let rows = area(&resample(&shares, room), HEIGHT);
        for (row, line) in rows.iter().enumerate() {
            let value = match row {
                0 => number(high),
                row if row == HEIGHT - 1 => number(low),
                _ => String::new(),
            };
            self.line(&format!("{value:>label$} │{line}"));
        }
        let at: Vec<usize> = spread(curve.at.len(), room).into_iter().map(|i| curve.at[i]).collect();
        let (indent, axis) = (" ".repeat(label + 2), axis(&at));
        self.line(&format!("{indent}{axis}"));
    }

    fn bound(&mut self, rope: &RopeEffects) {
        let bound = &rope.bound;
        self.heading("Reach of the base (Men et al. 2024)");
        let theta = number(bound.theta);
        self.text(&match bound.horizon {
            Some(horizon) => {
                format!(
                    "With base {theta} a key equal to the query gets a higher score than a random key up to a distance of {horizon} tokens."
                )
            }
            None => format!(
                "With base {theta} a key equal to the query gets a higher score than a random key at all {} distances tried.",
                bound.searched
            ),
        });
        for SmallestBase { context, theta, published } in bound.for_trained.iter().chain(&bound.for_length) {
            let source = if *published { " (published for width 128)" } else { "" };
            self.text(&format!("The smallest base that reaches {context} tokens is {}{source}.", number(*theta)));
        }
        let reach = |s: &ScalingEffect| {
            let far = s.horizon.map_or(format!("over {}", bound.searched), |n| n.to_string());
            format!("{} {far}", s.name)
        };
        if !rope.scalings.is_empty() {
            let all: Vec<String> = rope.scalings.iter().map(reach).collect();
            self.text(&format!("Reach under the scalings above: {}.", all.join(", ")));
        }
    }

    fn alibi(&mut self, heads: &[AlibiHead], bias: Option<&BiasMap>) {
        self.heading("Remaining weight of a key by distance, per head");
        let used = 4 + 1 + 10 + 1 + 9 + 2;
        let room = self.room(used);
        self.line(&format!("{:>4} {:>10} {:>9}", "head", "slope", "halves at"));
        for index in spread(heads.len(), ROWS) {
            let AlibiHead { head, slope, half_distance } = heads[index];
            let row = bias.and_then(|map| map.values.get(index));
            // Near keys first.
            let weights: Vec<f64> = row.into_iter().flatten().rev().map(|bias| bias.exp()).collect();
            let strip = columns(resample(&weights, room));
            self.line(&format!("{head:>4} {:>10} {:>9}  {strip}", number(slope), number(half_distance)));
        }
        if let Some(map) = bias {
            let far: Vec<usize> = map.distances.iter().rev().map(|d| d.unsigned_abs() as usize).collect();
            let at: Vec<usize> = spread(far.len(), room).into_iter().map(|i| far[i]).collect();
            self.line(&format!("{}{}", " ".repeat(used), axis(&at)));
        }
        self.text("A score falls by the slope for every token of distance. There are no frequencies and nothing to scale: near keys are preferred at any length.");
    }

    fn t5(&mut self, buckets: &[Bucket], read: bool) {
        self.heading("Distances that share a learned bias (key minus query)");
        let end = |end: Option<i64>, open: &str| end.map_or(open.to_string(), |n| n.to_string());
        let shared: Vec<String> = buckets
            .iter()
            .filter(|b| b.first != b.last)
            .map(|b| format!("{}: {} to {}", b.bucket, end(b.first, "any"), end(b.last, "any")))
            .collect();
        self.text(&format!(
            "buckets {}; the other {} have one distance each",
            shared.join(", "),
            buckets.len() - shared.len()
        ));
        if !read {
            self.text("The bias itself is learned: its table is part of the weights.");
        }
    }

    /// A bias, head by head.
    fn bias(&mut self, map: &BiasMap) {
        let all = || map.values.iter().flatten().copied();
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        self.heading(&format!("Bias by head and distance (· {} to █ {})", number(low), number(high)));
        let room = self.room(6).min(map.distances.len());
        for head in spread(map.values.len(), ROWS) {
            let row: Vec<f64> = map.values[head].iter().map(|v| (v - low) / (high - low).max(1e-12)).collect();
            self.line(&format!("{head:>4}  {}", shades(resample(&row, room))));
        }
        let (first, last) = (map.distances[0], map.distances[map.distances.len() - 1]);
        let last = last.to_string();
        self.line(&format!("      {first}{last:>rest$}", rest = room.saturating_sub(first.to_string().len())));
    }
}

/// A line that names the encoding and its layers.
pub(super) fn title(group: &ExplainedGroup) -> String {
    let encoding = &group.encoding;
    let mut facts = vec![];
    let name = match encoding.kind {
        "rope" => {
            let lanes = encoding.rotary_dim.zip(encoding.head_dim);
            facts.extend(encoding.theta.map(|theta| format!("base {}", number(theta))));
            facts.extend(lanes.map(|(rotated, all)| format!("{rotated} of {all} lanes rotate")));
            match (encoding.rope_type, encoding.factor) {
                (Some("default"), _) | (None, _) => facts.push("no scaling".to_string()),
                (Some(kind), Some(by)) => facts.push(format!("scaling {kind}, factor {}", factor(by))),
                (Some(kind), None) => facts.push(format!("scaling {kind}")),
            }
            "RoPE"
        }
        "alibi" => "ALiBi",
        "sandwich" => "Products of sinusoids (Sandwich)",
        "t5" => "Relative bias",
        "learned" => "Learned positions",
        "sinusoidal" => "Sinusoidal positions",
        "rotary_table" => "RoPE from a table",
        "xpos" => "xPos",
        "kerple" => "Kerple, logarithmic form",
        "kerple-power" => "Kerple, power form",
        "fire" => "FIRE",
        "fox" => "Forget gates (FoX)",
        "shaw" => "Relative keys (Shaw)",
        "cope" => "Contextual positions (CoPE)",
        "ssmax" => "RoPE with scalable softmax",
        "learned-frequencies" => "RoPE with learned frequencies",
        "nope" => "No encoding",
        other => other,
    };
    facts.extend(group.sliding_window.map(|n| format!("window {n}")));
    facts.extend(group.chunk.map(|n| format!("chunks of {n}")));
    let place = if group.on == "embeddings" { "on the embeddings of the".to_string() } else { "in the".to_string() };
    let layers = if group.layers.len() == 1 { "layer" } else { "layers" };
    let facts = if facts.is_empty() { String::new() } else { format!(": {}", facts.join(", ")) };
    format!("{name} {place} {}'s {layers} {}{facts}", group.stack, ranges(&group.layers))
}

/// The strip of one scaling: `·` for a pair that is unchanged, and a space for one that does not turn.
fn strip(scaling: &ScalingEffect, largest: f64, room: usize) -> String {
    let by: Vec<f64> = scaling.divided_by.iter().map(|by| by.unwrap_or(f64::NAN)).collect();
    let glyph = |by: f64| match by {
        by if by <= 1.0 + 1e-9 => '·',
        by => columns([by.ln() / largest.max(1.0 + 1e-9).ln()]).chars().next().unwrap_or(' '),
    };
    resample(&by, room).into_iter().map(glyph).collect()
}

/// A bar with `│` at column `mark`.
fn marked(bar: &str, mark: Option<usize>) -> String {
    let Some(mark) = mark else { return bar.to_string() };
    let mut cells: Vec<char> = bar.chars().collect();
    cells.resize(cells.len().max(mark + 1), ' ');
    cells[mark] = '│';
    cells.into_iter().collect()
}

/// Tick labels under columns that show the values `at`: for the first column, each power of ten and the last, as far as they fit.
fn axis(at: &[usize]) -> String {
    let mut line = String::new();
    let mut next = 10;
    for (column, &value) in at.iter().enumerate() {
        let last = column + 1 == at.len();
        let passed = value >= next;
        while value >= next {
            next *= 10;
        }
        let shown = if passed && !last { next / 10 } else { value };
        let label = shown.to_string();
        let at_end = last && at.len() > line.chars().count() + label.len();
        let fits = column >= line.chars().count() + usize::from(column > 0) && column + label.len() + 6 <= at.len();
        if at_end {
            line = format!("{line:<width$}{label}", width = at.len() - label.len());
        } else if (column == 0 || passed) && fits {
            line = format!("{line:<column$}{label}");
        }
    }
    line
}

/// About four digits, without needless zeros.
fn number(x: f64) -> String {
    let text = match x.abs() {
        0.0 => return "0".to_string(),
        a if !(1e-3..1e6).contains(&a) => {
            let text = format!("{x:.2e}");
            return text.replace(".00e", "e").replace("0e", "e");
        }
        a if a >= 1000.0 => return format!("{x:.0}"),
        a if a >= 100.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        _ => format!("{x:.4}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// `0-3, 5` for 0, 1, 2, 3, 5.
pub fn ranges(sorted: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = vec![];
    for &n in sorted {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == n => *end = n,
            _ => runs.push((n, n)),
        }
    }
    let shown = |(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs.iter().map(shown).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::explain;
    use serde_json::Value;

    fn golden(name: &str) -> Explained {
        let path = format!("{}/testdata/models/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
        let config: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).unwrap();
        explain(name, &attn_models::families::spec(&config).unwrap(), None, None, None).unwrap()
    }

    fn plain(name: &str, width: usize) -> String {
        explanation(&golden(name), TableStyle { width, color: false })
    }

    #[test]
    fn every_family_keeps_to_the_width_and_to_what_it_can_say() {
        let said = [
            ("llama", "Wavelengths"),
            ("llama-yarn", "scaling of the config"),
            ("phi3-longrope", "scaling longrope"),
            ("gemma3", "no distance is longer than in training"),
            ("smollm3-nope", "nothing to scale"),
            ("llama4-irope", "Factor of the queries"),
            ("bloom", "halves at"),
            ("gpt2", "one learned vector"),
            ("t5", "share a learned bias"),
        ];
        for (name, part) in said {
            for width in [100, 60, 40] {
                let text = plain(name, width);
                let flowing = text.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(flowing.contains(part), "{name} should say {part:?}:\n{text}");
                let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
                assert!(widest <= width, "{name} at {width}: {widest}\n{text}");
                assert!(!text.contains("NaN") && !text.contains('\x1b'), "{text}");
            }
        }
    }

    /// A title falls back on the name in configs; every encoding that can be trained has a title of its own.
    #[test]
    fn every_encoding_that_can_be_trained_has_a_title_and_fits() {
        for name in attn_models::families::ENCODINGS {
            let config = serde_json::json!({
                "model_type": "attn_decoder", "position_encoding": name, "vocab_size": 100, "hidden_size": 32,
                "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
            });
            let spec = attn_models::families::spec(&config).unwrap();
            let explained = explain(name, &spec, None, None, None).unwrap();
            for group in &explained.position {
                let title = title(group);
                assert!(!title.starts_with(&format!("{} ", group.encoding.kind)), "{name}: {title}");
            }
            let text = explanation(&explained, TableStyle { width: 60, color: false });
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= 60 && !text.contains("NaN"), "{name}: {widest}\n{text}");
            let page = crate::report::html::explanation(&explained).unwrap();
            assert!(!page.contains("NaN"), "{name}");
        }
    }

    #[test]
    fn colour_changes_no_column() {
        let explained = golden("llama");
        let colored = explanation(&explained, TableStyle { width: 80, color: true });
        assert!(colored.contains(MARK) && colored.contains(HEADING));
        let stripped = [HEADING, MARK, RESET].iter().fold(colored, |text, code| text.replace(code, ""));
        assert_eq!(stripped, explanation(&explained, TableStyle { width: 80, color: false }));
    }

    #[test]
    fn numbers_runs_and_ticks_read_well() {
        let shown = [0.0, 1.0, 6.25, 40.7, 256.0, 12345.6, 1e6, 2.5e-5, 0.0625].map(number);
        assert_eq!(shown, ["0", "1", "6.25", "40.7", "256", "12346", "1e6", "2.5e-5", "0.0625"]);
        assert_eq!((ranges(&[0, 1, 2, 3, 5, 7, 8]), ranges(&[4])), ("0-3, 5, 7-8".to_string(), "4".to_string()));
        let at: Vec<usize> = (0..40).map(|i| (1.2f64.powi(i) as usize).min(1023)).collect();
        let axis = axis(&at);
        assert!(axis.starts_with('1') && axis.contains("10") && axis.ends_with("1023"), "{axis}");
        assert!(axis.chars().count() <= 40);
    }

    #[test]
    fn strips_mark_what_is_kept() {
        let scaling = ScalingEffect {
            name: "x".into(),
            rope_type: "yarn",
            factor: Some(4.0),
            attention_factor: 1.0,
            divided_by: vec![Some(1.0), Some(2.0), Some(4.0), None],
            kept: 1,
            between: 1,
            divided: 1,
            horizon: None,
        };
        assert_eq!(strip(&scaling, 4.0, 10), "·▅█ ");
        assert_eq!(marked("██", Some(4)), "██  │");
        assert_eq!(marked("████", Some(1)), "█│██");
    }
}
