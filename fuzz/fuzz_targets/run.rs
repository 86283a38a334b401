//! A run file of `attn compare`, of one model or several, and of `attn retrieval`: read, continued, merged with itself
//! and summarised.
#![no_main]

use attn_eval::Result;
use attn_eval::across::{self, ModelSpec};
use attn_eval::compare::{LabSpec, Results, sum_up};
use attn_eval::report::{
    About, RetrievalMetric, TableStyle, csv, html, models_csv, models_table, models_verdict, svg, table, verdict,
};
use attn_eval::retrieval::{RetrievalSpec, summarise};
use attn_eval::run::{Header, Measurable, Run, RunFile, Shard, kind, resealed};
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;
use tempfile::NamedTempFile;

/// Runs with more cells than this are not summarised: that takes long only because there are many.
const CELLS: usize = 8;

static FILE: LazyLock<NamedTempFile> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { NamedTempFile::new_in(memory) } else { NamedTempFile::new() }.expect("a temporary file")
});

fuzz_target!(|data: &[u8]| {
    either(data, compared);
    either(data, retrieved);
    either(data, of_models);
});

/// Reads the file as it is, and again with the fingerprint and the checksums that its lines should have.
fn either<C: Measurable + std::fmt::Debug>(data: &[u8], show: fn(&Run<C>) -> Result<()>) {
    file(data, show);
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    // If the first line has a checksum, it is not read here, because a header does not know that key.
    let Ok(header) = serde_json::from_slice::<Header<C>>(&data[..end]) else { return };
    let header = Header::new(header.about, header.cells);
    let mut bytes = serde_json::to_vec(&header).expect("a header is JSON");
    bytes.extend_from_slice(&data[end..]);
    file(&resealed(&bytes), show);
}

fn file<C: Measurable + std::fmt::Debug>(data: &[u8], show: fn(&Run<C>) -> Result<()>) {
    let path = FILE.path();
    std::fs::write(path, data).expect("a temporary file");
    let kind = kind(path);
    let Ok(run) = Run::<C>::read(path) else { return };
    assert_eq!(kind.expect("a run file has a kind"), C::KIND);

    let measured = |run: &Run<C>| run.scores.iter().filter(|scores| scores.is_some()).count();
    let same = |a: &Run<C>, b: &Run<C>| {
        a.scores.iter().zip(&b.scores).all(|pair| match pair {
            (Some(a), Some(b)) => C::agree(a, b),
            (a, b) => a.is_none() && b.is_none(),
        })
    };
    // A continued file keeps its cells, and has the added cells when it is read again.
    let mut open = RunFile::open(path, run.header.clone()).expect("what is read is gone on with");
    assert!(same(&run, &open.run));
    let known = run.scores.iter().flatten().next();
    if let (Some(&cell), Some(scores)) = (run.missing().first(), known)
        && open.append(cell, scores.clone()).is_ok()
    {
        drop(open);
        let read = Run::<C>::read(path).expect("what is written is read");
        assert_eq!(measured(&read), measured(&run) + 1);
        assert!(read.scores[cell].as_ref().is_some_and(|read| C::agree(read, scores)));
    }

    let _ = "1/2".parse::<Shard>().expect("a shard").cells(&run.header.cells);
    let pair = vec![(path.into(), run.clone()), (path.into(), run)];
    let merged = Run::merge(pair).expect("a run agrees with itself");
    if merged.missing().is_empty() && merged.header.cells.len() <= CELLS {
        let _ = show(&merged);
    }
}

fn compared(run: &Run<LabSpec>) -> Result<()> {
    let about = &run.header.about;
    shown(about, &sum_up(&run.header.cells, &run.scores, about)?)
}

fn shown(about: &About, results: &Results) -> Result<()> {
    assert!(results.by_text.iter().all(|part| part.text < about.texts.len()));
    for width in [40, 120] {
        let _ = table(&results.cells, &[], TableStyle { width, color: true });
    }
    let _ = (verdict(results, about.one_factor(), about.trained_context()), csv(results));
    let _ = svg(&results.cells, &about.checkpoint.name, None);
    html::comparison(about, results, None).map(drop)
}

fn retrieved(run: &Run<RetrievalSpec>) -> Result<()> {
    let found = summarise(&run.header.cells, &run.scores, &run.header.about)?;
    for metric in RetrievalMetric::ALL {
        let _ = attn_eval::report::heat(&found, metric, TableStyle { width: 80, color: true });
        html::retrieval(&run.header.about, &found, metric)?;
    }
    Ok(())
}

fn of_models(run: &Run<ModelSpec>) -> Result<()> {
    let about = &run.header.about;
    let results = across::summarise(&run.header.cells, &run.scores, about)?;
    let _ = models_table(about, &results, TableStyle { width: 80, color: true });
    let _ = (models_verdict(&results), models_csv(&results));
    html::models(about, &results).map(drop)
}
