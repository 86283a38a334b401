//! The page of `attn explain --html`.

use super::{Cell, Chart, Head, Mark, Page, Series, Table, View, digits};
use crate::encoding::effects::{BiasMap, Bucket, Curve, RopeEffects};
use crate::error::Result;
use crate::explain::{Explained, ExplainedGroup};
use crate::report::explain::title;
use crate::report::factor;

/// The explanation as one HTML file.
///
/// # Errors
/// A number that JSON can't hold.
pub fn explanation(explained: &Explained) -> Result<String> {
    let mut page = Page::new(&format!("Position encoding of {}", explained.model));
    let trained = explained.trained_context;
    let times = trained.map(|n| explained.length as f64 / n as f64);
    page.text(&format!(
        "A {} model, {}. Explained for sequences of {} tokens{}.",
        explained.family,
        trained.map_or("whose trained context is unknown".to_string(), |n| format!("trained to {n} tokens")),
        explained.length,
        times.map_or(String::new(), |times| format!(", {} times the trained context", factor(times)))
    ));
    if let Some(caveat) = explained.caveat() {
        page.text(caveat);
    }
    for (index, group) in explained.position.iter().enumerate() {
        page.heading(&title(group));
        if let Some(rope) = &group.effects.rope {
            self::rope(&mut page, index, group, rope);
        }
        if !group.effects.heads.is_empty() {
            alibi(&mut page, index, group);
        }
        if !group.effects.bucket_ranges.is_empty() {
            t5(&mut page, index, group);
        } else if let (true, Some(map)) = (group.effects.heads.is_empty(), &group.effects.bias) {
            heat_map(&mut page, index, map);
        }
        if let Some(curve) = &group.effects.temperature {
            let note = "Queries are multiplied by this number, which depends on their position, so that attention over a long context stays sharp.";
            page.chart(curves(
                id("temperature", index),
                "Query temperature",
                note,
                "position",
                std::slice::from_ref(curve),
            ));
        }
        if let Some(curve) = &group.effects.similarity {
            let note = "Similarity of the vectors of two positions by their distance; 1 is equal.";
            page.chart(curves(id("similarity", index), "Similarity", note, "distance", std::slice::from_ref(curve)));
        }
        match group.encoding.kind {
            "learned" => page.text(&format!(
                "A table with one learned vector per position. It has {} positions: longer sequences can't be read.",
                group.encoding.max_position_embeddings.unwrap_or(0)
            )),
            "nope" => page.text("These layers get positions only through the causal mask."),
            _ => {}
        }
    }
    page.heading("Data");
    page.save_button("explain.json");
    Ok(page.finish(&serde_json::to_value(explained)?))
}

/// The HTML id of a part of the group `index`.
fn id(name: &str, index: usize) -> String {
    format!("{name}-{index}")
}

fn curves(id: String, title: &str, note: &str, xlabel: &'static str, curves: &[Curve]) -> Chart {
    let line = |curve: &Curve| Series {
        name: curve.name.clone(),
        values: curve.values.iter().copied().map(Some).collect(),
        ..Series::default()
    };
    let x = curves.first().map_or(vec![], |curve| curve.at.iter().map(|&at| at as f64).collect());
    let view = View { x, series: curves.iter().map(line).collect(), ..View::default() };
    Chart {
        id,
        title: title.to_string(),
        note: note.to_string(),
        xlabel,
        xunit: "tokens",
        xlog: true,
        xfloor: 0.5,
        views: vec![view],
        ..Chart::default()
    }
}

fn rope(page: &mut Page, index: usize, group: &ExplainedGroup, rope: &RopeEffects) {
    let numbers: Vec<f64> = rope.pairs.iter().map(|pair| pair.pair as f64).collect();
    let trained = group.effects.trained;
    let mut lines = vec![Series {
        name: "tokens per full turn".into(),
        values: rope.pairs.iter().map(|pair| pair.wavelength).collect(),
        ..Series::default()
    }];
    lines.extend(trained.map(|n| Series {
        name: "trained context".into(),
        values: vec![Some(n as f64); numbers.len()],
        ..Series::default()
    }));
    let slow = rope.pairs.iter().filter(|pair| pair.trained_turns.is_some_and(|turns| turns < 1.0)).count();
    let note = match trained {
        Some(n) if slow > 0 => format!(
            "{slow} of {} pairs of lanes turn less than once in {n} tokens, the trained length (without scaling). In longer \
             texts they reach angles that did not occur in training.",
            rope.pairs.len()
        ),
        _ => "Number of tokens in which each pair of lanes turns once.".to_string(),
    };
    page.chart(Chart {
        id: id("wavelengths", index),
        title: "Wavelengths".into(),
        note,
        xlabel: "pair, fastest first",
        ylabel: "tokens",
        xunit: "(pair)",
        ylog: true,
        views: vec![View { x: numbers.clone(), series: lines, ..View::default() }],
        ..Chart::default()
    });
    if !rope.scalings.is_empty() {
        scalings(page, index, group, rope, numbers);
    }
    let note = "RoFormer's bound on the product of a query and a key, by their distance (section 3.4.3).";
    page.chart(Chart { yzero: true, ..curves(id("decay", index), "Decay", note, "distance", &rope.decay) });
    bound(page, index, rope);
}

fn scalings(page: &mut Page, index: usize, group: &ExplainedGroup, rope: &RopeEffects, numbers: Vec<f64>) {
    let series = rope.scalings.iter().map(|scaling| Series {
        name: scaling.name.clone(),
        values: scaling.divided_by.clone(),
        ..Series::default()
    });
    page.chart(Chart {
        id: id("scalings", index),
        title: "Divisor of the frequencies under each scaling".into(),
        note: format!(
            "At {} tokens. 1 leaves a pair unchanged; fast pairs tell near distances apart, slow ones far distances.",
            group.effects.length
        ),
        xlabel: "pair, fastest first",
        ylabel: "divided by",
        xunit: "(pair)",
        ylog: true,
        views: vec![View { x: numbers, series: series.collect(), ..View::default() }],
        ..Chart::default()
    });
    let heads = ["pairs kept", "between", "divided most", "divided by at most", "times cos and sin", "reach (tokens)"];
    let rows = rope.scalings.iter().map(|scaling| {
        let most = scaling.divided_by.iter().flatten().copied().fold(1.0, f64::max);
        vec![
            Cell::text(&scaling.name),
            Cell::count(scaling.kept),
            Cell::count(scaling.between),
            Cell::count(scaling.divided),
            Cell::number(most, digits(most)),
            Cell::number(scaling.attention_factor, digits(scaling.attention_factor)),
            match scaling.horizon {
                Some(horizon) => Cell::count(horizon),
                None => Cell::number(rope.bound.searched as f64, format!("over {}", rope.bound.searched)),
            },
        ]
    });
    page.table(&Table {
        id: id("scalings-table", index),
        caption: "Scalings; reach: distance up to which a key equal to the query gets a higher score than a random key"
            .into(),
        heads: std::iter::once(Head::text("scaling")).chain(heads.map(Head::number)).collect(),
        rows: rows.collect(),
    });
}

fn bound(page: &mut Page, index: usize, rope: &RopeEffects) {
    page.subheading("Reach of the base (Men et al. 2024)");
    let bound = &rope.bound;
    page.text(&match bound.horizon {
        Some(horizon) => format!(
            "With base {} and no scaling a key equal to the query gets a higher score than a random key up to a distance of {horizon} tokens.",
            digits(bound.theta)
        ),
        None => format!(
            "With base {} and no scaling a key equal to the query gets a higher score than a random key at all {} distances tried.",
            digits(bound.theta),
            bound.searched
        ),
    });
    let smallest: Vec<_> = bound.for_trained.iter().chain(&bound.for_length).collect();
    let rows = smallest.iter().map(|base| {
        let source = if base.published { "published, width 128" } else { "computed" };
        vec![Cell::count(base.context), Cell::number(base.theta, digits(base.theta)), Cell::text(source)]
    });
    if !smallest.is_empty() {
        page.table(&Table {
            id: id("bases", index),
            caption: "Smallest base that reaches a context".into(),
            heads: vec![Head::number("context"), Head::number("smallest base"), Head::text("source")],
            rows: rows.collect(),
        });
    }
}

fn alibi(page: &mut Page, index: usize, group: &ExplainedGroup) {
    if let Some(map) = &group.effects.bias {
        let line = |(head, row): (usize, &Vec<f64>)| Series {
            name: format!("head {head}"),
            values: row.iter().rev().map(|bias| Some(bias.exp())).collect(),
            ..Series::default()
        };
        let x = map.distances.iter().rev().map(|d| d.unsigned_abs() as f64).collect();
        page.chart(Chart {
            id: id("weights", index),
            title: "Remaining weight of a key".into(),
            note: "By distance, for equal scores: heads with a steep slope look near, flat ones far. Nothing here depends \
                   on the length, so there is nothing to scale."
                .into(),
            xlabel: "distance",
            ylabel: "remaining share",
            xunit: "tokens",
            xlog: true,
            xfloor: 0.5,
            yzero: true,
            views: vec![View { x, series: map.values.iter().enumerate().map(line).collect(), ..View::default() }],
            ..Chart::default()
        });
        heat_map(page, index, map);
    }
    let rows = group.effects.heads.iter().map(|head| {
        let halves = Cell::number(head.half_distance, digits(head.half_distance));
        vec![Cell::count(head.head), Cell::number(head.slope, digits(head.slope)), halves]
    });
    page.table(&Table {
        id: id("heads", index),
        caption: "Slopes, and the distance in which a weight halves".into(),
        heads: ["head", "slope", "tokens to halve"].map(Head::number).to_vec(),
        rows: rows.collect(),
    });
}

fn t5(page: &mut Page, index: usize, group: &ExplainedGroup) {
    match &group.effects.bias {
        Some(map) => {
            let line = |(head, row): (usize, &Vec<f64>)| Series {
                name: format!("head {head}"),
                values: row.iter().copied().map(Some).collect(),
                ..Series::default()
            };
            page.chart(Chart {
                id: id("bias", index),
                title: "Bias".into(),
                note: "Added to the scores, by key position minus query position.".into(),
                xlabel: "key minus query",
                ylabel: "bias",
                views: vec![View {
                    x: map.distances.iter().map(|&d| d as f64).collect(),
                    series: map.values.iter().enumerate().map(line).collect(),
                    marks: vec![Mark { x: 0.0, label: "the query itself".into() }],
                    ..View::default()
                }],
                ..Chart::default()
            });
            heat_map(page, index, map);
        }
        None => page.soft("The bias is learned: its table is part of the weights, which were not read."),
    }
    let end = |end: Option<i64>| match end {
        Some(end) => Cell::number(end as f64, end.to_string()),
        None => Cell::text("no end"),
    };
    let rows = group.effects.bucket_ranges.iter();
    let rows = rows.map(|&Bucket { bucket, first, last }| vec![Cell::count(bucket), end(first), end(last)]);
    page.table(&Table {
        id: id("buckets", index),
        caption: "Buckets: distances (key minus query) that share a learned number".into(),
        heads: ["bucket", "first distance", "last distance"].map(Head::number).to_vec(),
        rows: rows.collect(),
    });
}

/// The bias by head and distance; the darker, the more a key is favoured.
fn heat_map(page: &mut Page, index: usize, map: &BiasMap) {
    let all = || map.values.iter().flatten().copied();
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let kept = crate::report::blocks::spread(map.distances.len(), 24);
    let heads = kept.iter().map(|&i| Head::number(map.distances[i].to_string()));
    let row = |(head, row): (usize, &Vec<f64>)| {
        let cells =
            kept.iter().map(|&i| Cell::number(row[i], digits(row[i])).heat((row[i] - low) / (high - low).max(1e-12)));
        std::iter::once(Cell::count(head)).chain(cells).collect()
    };
    page.table(&Table {
        id: id("map", index),
        caption: format!("Bias by head and distance (key minus query), from {} to {}", digits(low), digits(high)),
        heads: std::iter::once(Head::number("head")).chain(heads).collect(),
        rows: map.values.iter().enumerate().map(row).collect(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn every_kind_of_encoding_has_a_page_with_its_charts() {
        let charts = [
            ("llama-yarn", "wavelengths-0 scalings-0 decay-0"),
            ("bloom", "weights-0"),
            ("t5", ""),
            ("gpt2", ""),
            ("llama4-irope", "temperature-1"),
        ];
        for (name, expected) in charts {
            let path = format!("{}/testdata/models/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
            let config: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).unwrap();
            let spec = attn_models::families::spec(&config).unwrap();
            let explained = crate::explain::explain("<b>", &spec, None, None, None).unwrap();
            let page = explanation(&explained).unwrap();
            for id in expected.split_whitespace() {
                assert!(page.contains(&format!("data-chart=\"{id}\"")), "{name}: {id}");
            }
            let (start, end) = (page.find("<main>").unwrap(), page.find("<script type=").unwrap());
            crate::report::markup::assert_well_formed(&page[start..end], &super::super::VOID);
            assert!(page.contains("&lt;b&gt;") && !page.contains("NaN"), "{name}");
        }
    }
}
