use super::*;
use crate::compare::{CellSpec, LabScores, LabSpec};
use crate::perplexity::{Bucket, ScoreOptions, Scores, score_with};
use crate::report::{CheckpointInfo, Machine, RopeSettings, Settings, TextInfo, Versions};
use crate::retrieval::{RetrievalScores, RetrievalSpec};
use crate::windows::WindowOptions;

fn about() -> About {
    About {
        command: vec!["attn".into(), "compare".into()],
        started: 1,
        versions: Versions { attn: "1".into(), candle: "2".into() },
        checkpoint: CheckpointInfo {
            name: "m".into(),
            revision: None,
            sha256: "ab".into(),
            files: vec![],
            family: "llama".into(),
            parameters: 1,
            trained_context: Some(8),
            rope_type: "default".into(),
        },
        models: vec![],
        texts: vec![TextInfo {
            name: "t".into(),
            sha256: "cd".into(),
            bytes: 1,
            documents: 1,
            tokens: Some(64),
            used: 64,
            used_bytes: None,
        }],
        settings: Settings {
            modes: vec!["none".into(), "yarn".into()],
            contexts: vec![8, 16],
            factor: None,
            stride: None,
            bos: None,
            bos_choice: None,
            length: None,
            seed: 0,
            rope: RopeSettings::default(),
            dtype: "f32".into(),
            device: "cpu".into(),
            keep_quantized: false,
            cache_type_k: None,
            cache_type_v: None,
            metrics: None,
            usable: false,
            skipped: vec![],
            retrieval: None,
        },
        machines: vec![Machine { os: "o".into(), arch: "a".into(), cpu: None, cores: 1, threads: 1 }],
    }
}

fn cells() -> Vec<CellSpec> {
    let cell = |context, mode: &str| CellSpec {
        text: 0,
        context,
        stride: context,
        mode: mode.into(),
        factor: 1.0,
        same_as: None,
        between: false,
    };
    vec![cell(8, "none"), cell(8, "yarn"), cell(16, "none"), cell(16, "yarn")]
}

fn scores(nll: f32) -> Scores {
    let mut model = |batch: &[Vec<u32>]| Ok(batch.iter().map(|row| vec![nll / 3.0; row.len() - 1]).collect());
    let options = ScoreOptions { windows: WindowOptions { context: 8, stride: None, bos: None }, length: None };
    score_with(&mut model, &[0; 64], &options, &mut |_| ()).unwrap()
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    (folder, path)
}

#[test]
fn a_run_file_goes_on_where_it_stopped_wherever_it_was_torn() {
    let (_keep, path) = file();
    let header = || Header::new(about(), cells());
    let mut run = RunFile::open(&path, header()).unwrap();
    run.append(0, scores(1.0)).unwrap();
    run.append(2, scores(2.0)).unwrap();
    drop(run);
    let bytes = std::fs::read(&path).unwrap();
    let ends: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
    assert_eq!(ends.len(), 3);
    for cut in 0..=bytes.len() {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let mut run = RunFile::open(&path, header()).unwrap();
        assert_eq!(run.run.scores[0].is_some(), cut >= ends[1], "cut at {cut}");
        assert_eq!(run.run.scores[2].is_some(), cut >= ends[2], "cut at {cut}");
        for index in run.run.missing() {
            run.append(index, scores(index as f32)).unwrap();
        }
        drop(run);
        let whole = Run::<CellSpec>::read(&path).unwrap();
        assert!(whole.missing().is_empty(), "cut at {cut}");
        assert_eq!(whole.scores[3].as_ref().unwrap().windows, scores(3.0).windows);
    }
}

#[test]
fn another_setting_is_refused_by_name() {
    let (_keep, path) = file();
    RunFile::open(&path, Header::new(about(), cells())).unwrap();
    let refused = |change: &dyn Fn(&mut About), name: &str| {
        let mut other = about();
        change(&mut other);
        let error = RunFile::open(&path, Header::new(other, cells())).unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
    };
    refused(&|a| a.settings.contexts = vec![8], "--contexts: [8,16], not [8]");
    refused(&|a| a.settings.seed = 1, "--seed");
    refused(&|a| a.settings.dtype = "bf16".into(), "--dtype");
    refused(&|a| a.settings.cache_type_k = Some("q8_0".into()), "--cache-type-k: absent, not \"q8_0\"");
    refused(&|a| a.checkpoint.sha256 = "ff".into(), "model");
    refused(&|a| a.texts[0].sha256 = "ff".into(), "--text");
    refused(&|a| a.texts[0].used += 5, "--max-tokens");
    refused(&|a| a.versions.attn = "9".into(), "version");
    refused(&|a| a.settings.rope.theta = Some(5e5), "--rope-theta: null, not 500000.0");
    // Where and how the run is started makes no difference.
    let mut other = about();
    (other.started, other.command, other.checkpoint.name) = (9, vec![], "elsewhere".into());
    other.machines[0].threads = 7;
    RunFile::open(&path, Header::new(other, cells())).unwrap();
}

#[test]
fn two_writers_damage_and_other_files_are_refused() {
    let (_keep, path) = file();
    let mut first = RunFile::open(&path, Header::new(about(), cells())).unwrap();
    let error = RunFile::open(&path, Header::new(about(), cells())).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    first.append(0, scores(1.0)).unwrap();
    first.append(1, scores(1.0)).unwrap();
    drop(first);
    let text = std::fs::read_to_string(&path).unwrap();
    let damaged = text.replacen("\"cell\":0", "\"cell\":x", 1);
    std::fs::write(&path, &damaged).unwrap();
    let error = Run::<CellSpec>::read(&path).unwrap_err();
    assert!(matches!(&error, Error::DamagedRun { path: named, line: 2, .. } if *named == path), "{error}");
    assert!(matches!(error.innermost(), Error::Checksum), "{error}");
    assert_eq!(error.to_string(), format!("{}, line 2: it is damaged: it does not match its checksum", path.display()));
    std::fs::write(&path, resealed(damaged.as_bytes())).unwrap();
    let error = Run::<CellSpec>::read(&path).unwrap_err();
    assert!(error.to_string().contains("line 2") && matches!(error.innermost(), Error::Json(_)), "{error}");
    std::fs::write(&path, resealed(text.replacen("\"seed\":0", "\"seed\":1", 1).as_bytes())).unwrap();
    let error = Run::<CellSpec>::read(&path).unwrap_err().to_string();
    assert!(error.contains("fingerprint"), "{error}");
    std::fs::write(&path, "mode,context\n").unwrap();
    let error = RunFile::open(&path, Header::new(about(), cells())).unwrap_err().to_string();
    assert!(error.contains("not a run file"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mode,context\n", "and it is left alone");
}

/// Whichever bit of a run file is flipped, the error names its line.
#[test]
fn a_bit_that_flipped_is_found_and_named() {
    let (_keep, path) = file();
    let mut run = RunFile::open(&path, Header::new(about(), cells())).unwrap();
    run.append(0, scores(1.0)).unwrap();
    run.append(1, scores(2.0)).unwrap();
    drop(run);
    let bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    // All bits would take too long; a prime step visits all bits of a byte.
    for bit in (0..bytes.len() * 8).step_by(37) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if bit / 8 == last {
            // Without its end, the last line counts as incomplete.
            continue;
        }
        match Run::<CellSpec>::parse(&flipped, &path) {
            Ok(read) => panic!("bit {bit} was not found: {}", read.is_some()),
            Err(error) => {
                let line = bytes[..bit / 8].iter().filter(|&&byte| byte == b'\n').count() + 1;
                let error = error.to_string();
                let named = error.contains(&format!("line {line}")) || bit / 8 < MAGIC.len();
                assert!(named, "bit {bit} of line {line}: {error}");
            }
        }
    }
    assert_eq!(resealed(&bytes), bytes);
    let old = String::from_utf8(bytes).unwrap().replacen("\"attn_run\":2", "\"attn_run\":1", 1);
    std::fs::write(&path, old).unwrap();
    let error = Run::<CellSpec>::read(&path).unwrap_err().to_string();
    assert!(error.contains("another version"), "{error}");
}

#[test]
fn a_run_file_is_a_regular_file() {
    for path in ["/dev/zero", "/"] {
        for error in [Run::<CellSpec>::read(Path::new(path)).unwrap_err(), kind(Path::new(path)).unwrap_err()] {
            assert!(error.to_string().contains("not a regular file"), "{error}");
        }
        let error = RunFile::open(Path::new(path), Header::new(about(), cells())).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}

#[test]
fn shards_cover_every_cell_once_and_merge_whatever_overlaps_and_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let part = |name: &str, shard: &str, extra: &[usize], scale: f32| {
        let path = folder.path().join(name);
        let mut run = RunFile::open(&path, Header::new(about(), cells())).unwrap();
        for index in shard.parse::<Shard>().unwrap().cells(&cells()).into_iter().chain(extra.iter().copied()) {
            run.append(index, scores(index as f32 * scale)).unwrap();
        }
        (path, run.run)
    };
    let parts = vec![part("a", "1/3", &[], 1.0), part("b", "2/3", &[0], 1.0), part("c", "3/3", &[], 1.0)];
    assert_eq!(parts[0].1.missing(), [1, 2]);
    assert_eq!(Run::merge(parts[..2].to_vec()).unwrap().missing(), [2]);
    let merged = Run::merge(parts.clone()).unwrap();
    assert!(merged.missing().is_empty());
    for (index, measured) in merged.scores.iter().enumerate() {
        assert_eq!(measured.as_ref().unwrap().windows, scores(index as f32).windows);
    }
    let other = part("d", "2/4", &[], 2.0);
    let error = Run::merge(vec![parts[1].clone(), other]).unwrap_err().to_string();
    assert!(error.contains("yarn at 8"), "{error}");
    for bad in ["0/2", "3/2", "1", "a/b", "1/0"] {
        assert!(bad.parse::<Shard>().is_err(), "{bad}");
    }
}

/// Figures that no run writes, in lines with correct checksums: these are no protection, since a forger can compute them too.
#[test]
fn figures_that_no_run_measures_are_refused_by_line() {
    let (_keep, path) = file();
    let written = |about: About, cells: Vec<CellSpec>, lines: &[(usize, Scores)]| {
        std::fs::write(&path, "").unwrap();
        let mut run = RunFile::open(&path, Header::new(about, cells)).unwrap();
        for (cell, scores) in lines {
            let spec = run.run.header.cells[*cell].clone();
            let (text, context, mode) = ("t".to_string(), spec.context, spec.mode);
            // A line that `append` refuses is written without its check.
            if run.append(*cell, scores.clone()).is_err() {
                let line = Line { cell: *cell, text, context, mode, scores: scores.clone() };
                run.write_line(&serde_json::to_string(&line).unwrap(), 1).unwrap();
            }
        }
        drop(run);
        Run::<CellSpec>::read(&path).map_err(|error| error.to_string())
    };
    assert!(written(about(), cells(), &[(0, scores(1.0)), (0, scores(1.0))]).is_ok());
    let refused = |change: &dyn Fn(&mut Scores), part: &str| {
        let mut wrong = scores(1.0);
        change(&mut wrong);
        let error = written(about(), cells(), &[(1, scores(1.0)), (0, wrong)]).unwrap_err();
        assert!(error.contains("line 3") && error.contains("cell 0") && error.contains(part), "{error}");
    };
    refused(&|s| s.windows.clear(), "windows");
    refused(&|s| s.windows[0].tokens = 9, "window 0");
    refused(&|s| s.windows[7].tokens = usize::MAX, "window 7");
    refused(&|s| s.windows[1].last_tokens = 8, "window 1");
    refused(&|s| s.windows[1].sum = 1e300, "window 1");
    refused(&|s| s.windows[1].squares = -1e300, "window 1");
    refused(&|s| s.windows = s.windows.repeat(100), "the 64 tokens");
    refused(&|s| s.curve.truncate(8), "by position");
    refused(&|s| s.curve[8].tokens += 1, "by position");
    refused(&|s| s.curve[8].sum = f64::MAX, "by position");
    // The same cell twice, with different measurements.
    let error = written(about(), cells(), &[(0, scores(1.0)), (0, scores(2.0))]).unwrap_err();
    assert!(error.contains("line 3") && error.contains("differently"), "{error}");

    let mut elsewhere = cells();
    for text in [1, usize::MAX] {
        elsewhere[2].text = text;
        let error = written(about(), elsewhere.clone(), &[]).unwrap_err();
        assert!(error.contains("line 1") && error.contains("part 2 of it is of text"), "{error}");
    }
    let mut endless = about();
    endless.texts.extend(endless.texts.clone());
    endless.texts[1].used = usize::MAX;
    assert!(written(endless, cells(), &[]).unwrap_err().contains("longer than any"));
}

#[test]
fn trials_that_were_not_asked_for_are_refused() {
    let spec = RetrievalSpec {
        task: "multi-value".into(),
        context: 512,
        depth: None,
        trials: 3,
        mode: "none".into(),
        factor: 1.0,
        same_as: None,
        between: false,
    };
    let answer = Bucket { sum: 9.5, tokens: 30 };
    let scores =
        |trials: usize, found, wanted| RetrievalScores { found, wanted, answers: vec![answer; trials], seconds: 1.0 };
    spec.check(&scores(3, 12, 12), &about()).unwrap();
    let other = RetrievalSpec { task: "needles".into(), ..spec.clone() };
    assert!(other.check(&scores(3, 12, 12), &about()).unwrap_err().to_string().contains("needles"));
    for wrong in [scores(3, 13, 12), scores(4, 3, 16), scores(4, 3, 12), scores(0, 0, 0), scores(3, 3, 3)] {
        assert!(spec.check(&wrong, &about()).is_err(), "{wrong:?}");
    }
    for answer in
        [Bucket { sum: 1.0, tokens: 0 }, Bucket { sum: 1.0, tokens: 1000 }, Bucket { sum: f64::NAN, tokens: 3 }]
    {
        let wrong = RetrievalScores { answers: vec![answer; 3], ..scores(3, 3, 12) };
        assert!(spec.check(&wrong, &about()).is_err(), "{wrong:?}");
    }
}

/// In a run with both kinds of cells, each line is read as its cell's kind, and a measurement of the other kind is refused.
#[test]
fn a_run_holds_perplexity_and_retrieval() {
    let (_keep, path) = file();
    let trials = RetrievalSpec {
        task: "passkey".into(),
        context: 512,
        depth: Some(0.1),
        trials: 2,
        mode: "none".into(),
        factor: 1.1,
        same_as: None,
        between: false,
    };
    let specs = vec![
        LabSpec::Text(cells()[0].clone()),
        LabSpec::Retrieval(trials.clone()),
        LabSpec::Text(CellSpec { between: true, ..cells()[2].clone() }),
        LabSpec::Retrieval(RetrievalSpec { between: true, depth: None, ..trials }),
    ];
    let answers = vec![Bucket { sum: 0.1, tokens: 5 }, Bucket { sum: 1.0 / 3.0, tokens: 5 }];
    let found = LabScores::Retrieval(RetrievalScores { found: 1, wanted: 2, answers, seconds: 0.5 });
    let mut run = RunFile::open(&path, Header::new(about(), specs.clone())).unwrap();
    assert_eq!(run.run.missing(), [0, 1], "those between are measured only where they are asked for");
    assert!(run.append(0, found.clone()).unwrap_err().to_string().contains("cell 0"));
    let text = LabScores::Text(scores(1.0));
    run.append(0, text.clone()).unwrap();
    run.append(1, found.clone()).unwrap();
    run.append(3, found.clone()).unwrap();
    drop(run);
    let read = Run::<LabSpec>::read(&path).unwrap();
    assert_eq!(read.header.cells, specs);
    assert_eq!((read.scores[0].clone(), read.scores[2].clone()), (Some(text), None));
    assert_eq!((read.scores[1].as_ref(), read.scores[3].as_ref()), (Some(&found), Some(&found)));
    assert!(read.missing().is_empty());
}

#[test]
fn cells_of_other_windows_are_not_compared() {
    let refused = |change: &dyn Fn(&mut Scores)| {
        let mut other = scores(1.0);
        change(&mut other);
        let all = [scores(1.0), other, scores(1.0), scores(1.0)].map(Some);
        let error = crate::compare::summarise(&cells(), &all, 0).unwrap_err().to_string();
        assert!(error.contains("yarn at 8") && error.contains("other windows than none"), "{error}");
    };
    refused(&|s| _ = s.windows.pop());
    refused(&|s| s.windows[2].tokens -= 1);
    refused(&|s| s.windows[2].last_tokens -= 1);
    refused(&|s| s.windows[2].last_tokens = 0);
}
