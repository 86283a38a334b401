use super::*;
use crate::across::{ModelSpec, PassageScores, summarise};
use crate::report::html::tests_about;
use crate::stats::WindowNll;

/// A comparison of two models whose names have to be escaped. At 256 tokens the second is better by 0.1 nats per byte; at 512
/// the two do not differ significantly, and the second has a mode that is the same computation as another.
pub(crate) fn about() -> About {
    let mut about = tests_about();
    about.texts.truncate(1);
    about.texts[0].used_bytes = Some(4000);
    about.settings.contexts = vec![256, 512];
    let info = |name: String, used| ModelInfo {
        checkpoint: crate::report::CheckpointInfo { name, ..about.checkpoint.clone() },
        modes: vec!["none".into()],
        bos: None,
        used: vec![used],
    };
    about.models = vec![info(about.checkpoint.name.clone(), 1200), info("b, \"c\"".into(), 900)];
    about
}

pub(crate) fn results() -> ModelResults {
    let (mut specs, mut all) = (vec![], vec![]);
    let rows = [(0, 256, "none"), (1, 256, "none"), (0, 512, "none"), (1, 512, "none"), (1, 512, "yarn")];
    for (model, context, mode) in rows {
        let same_as = (mode == "yarn").then(|| "none".to_string());
        let row = format!("{model}, {mode}");
        specs.push(ModelSpec { model, row, text: 0, context, mode: mode.into(), factor: 1.0, same_as });
        let window = |i: usize| {
            let noise = if i.is_multiple_of(2) { 20.0 } else { -20.0 };
            let sum = match (model, context) {
                (0, 256) => 250.0 + i as f64,
                (1, 256) => 200.0 + i as f64,
                (0, _) => 250.0 + noise,
                _ => 249.0 - noise,
            };
            WindowNll { sum, squares: sum, tokens: 100 - 20 * model, ..WindowNll::default() }
        };
        let windows = (0..8).map(window).collect();
        all.push((mode != "yarn").then(|| PassageScores { windows, bytes: vec![500; 8], seconds: 1.0 }));
    }
    summarise(&specs, &all, &about()).unwrap()
}

#[test]
fn tables_mark_the_best_and_what_can_not_be_told_from_it() {
    let (about, results) = (about(), results());
    let cell = &results.cells[0];
    let sum: f64 = (0..8).map(|i| 250.0 + f64::from(i)).sum();
    assert!((cell.bits_per_byte - sum / 4000.0 / std::f64::consts::LN_2).abs() < 1e-12);
    assert!((cell.perplexity - (sum / 800.0).exp()).abs() < 1e-9);
    assert_eq!((cell.bytes, cell.tokens, cell.windows), (4000, 800, 8));
    let versus = cell.versus_best.as_ref().unwrap();
    assert!((versus.bits_per_byte - 0.1 / std::f64::consts::LN_2).abs() < 1e-12 && versus.is_real() == Some(true));
    let text = models_table(&about, &results, TableStyle { width: 100, color: false });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "at most 256 tokens per window: 8 windows, 4000 bytes scored");
    assert!(lines[2].starts_with("A  none") && !lines[2].contains('*') && lines[3].contains('*'), "{text}");
    assert!(lines[7].starts_with("A  none") && lines[7].contains('~'), "{text}");
    assert!(lines[8].contains('*') && lines[9].contains('=') && text.contains("same computation"), "{text}");
    let colored = models_table(&about, &results, TableStyle { width: 100, color: true });
    assert_eq!(colored.replace(BEST, "").replace(RESET, ""), text);
    assert_eq!(colored.matches(BEST).count(), 2);
    assert_eq!(model_lines(&about, &results)[1], "B  b, \"c\", trained to 256, 6.25 bytes per token, no BOS");
    let said = models_verdict(&results);
    assert!(
        said[0].contains("b, \"c\" without scaling needs the fewest") && said[0].contains("needs 0.1443 more"),
        "{said:?}"
    );
    assert!(said[1].contains("which is not significant") && !said[1].contains("yarn"), "{said:?}");
    let csv = models_csv(&results);
    assert_eq!(csv.lines().count(), 6);
    assert!(csv.contains("\n\"b, \"\"c\"\"\",none,256,1,"), "{csv}");
}

#[test]
fn what_was_measured_comes_back_from_json_and_what_was_not_is_refused() {
    let (about, results) = (about(), results());
    let json = serde_json::to_string(&ModelsDocument::new(&about, &results)).unwrap();
    assert!(is_of_models(&json) && !is_of_models("{}"));
    let (read_about, read) = read_models_document(&json).unwrap();
    assert_eq!((read_about.models.len(), read.cells.len(), read.differences.len()), (2, 5, 4));
    assert_eq!(models_verdict(&read), models_verdict(&results));
    type Edit = fn(&mut ModelResults);
    let cases: [(&str, Edit); 9] = [
        ("no cells", |r| r.cells.clear()),
        ("twice", |r| r.cells.push(r.cells[0].clone())),
        ("no such model", |r| r.cells[0].model = "z".into()),
        ("bytes", |r| r.cells[0].bytes = 4001),
        ("tokens", |r| r.cells[0].tokens = 1201),
        ("other bytes", |r| r.cells[0].windows = 7),
        ("perplexity", |r| r.cells[0].bits_per_byte *= 1.01),
        ("differ", |r| r.differences[0].versus.bits_per_byte += 0.1),
        ("interval", |r| r.cells[0].interval = Some(Interval { low: 2.0, high: 1.0 })),
    ];
    for (part, edit) in cases {
        let mut edited = results.clone();
        edit(&mut edited);
        let error = edited.check(&about).map_err(|error| error.to_string()).unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
    }
    let mut one = about.clone();
    one.models.truncate(1);
    assert!(results.check(&one).unwrap_err().to_string().contains("two models"));
}

#[test]
fn few_windows_are_said_to_be_few() {
    let mut results = results();
    results.cells.iter_mut().for_each(|cell| (cell.windows, cell.interval) = (3, None));
    assert!(models_verdict(&results)[0].contains("3 windows are too little text"), "{:?}", models_verdict(&results));
}
