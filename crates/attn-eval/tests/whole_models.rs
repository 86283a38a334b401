//! Tests with whole models of the repository: every golden config is explained, and the embedded model writes text.
#![allow(missing_docs)]

use attn_eval::explain::explain;
use attn_eval::generate::{GenerateOptions, Writer};
use attn_eval::sample::{SampleOptions, Sampler};
use attn_eval::{Error, Result};
use attn_models::{Model, RopeLength, families};
use std::ops::ControlFlow;
use std::path::Path;

#[test]
fn every_golden_config_can_be_explained() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    let mut kinds = std::collections::BTreeSet::new();
    for model in std::fs::read_dir(models).unwrap() {
        let config = std::fs::read(model.unwrap().path().join("config.json")).unwrap();
        let spec = families::spec(&serde_json::from_slice(&config).unwrap()).unwrap();
        let explained = explain("m", &spec, None, None, None).unwrap();
        let layers: usize = explained.position.iter().map(|group| group.layers.len()).sum();
        assert!(layers > 0, "{}", explained.family);
        kinds.extend(explained.position.iter().map(|group| group.encoding.kind));
    }
    let all = ["alibi", "learned", "nope", "rope", "rotary_table", "sinusoidal", "t5"];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), all);
}

/// The tokens that a writer adds to `prompt`, and how many tokens of the prompt it read.
fn continued(writer: &mut Writer, prompt: &[u32]) -> Result<(Vec<u32>, usize)> {
    let mut new = vec![];
    let result = writer.write(prompt, &mut Sampler::new(SampleOptions::default()), &mut |token| {
        new.push(token);
        Ok::<_, Error>(ControlFlow::Continue(()))
    })?;
    Ok((new, result.prompt_tokens))
}

#[test]
fn a_writer_reads_what_is_new_and_writes_what_one_who_reads_it_all_would() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-austen");
    let options = loader::LoadOptions { quiet: true, ..Default::default() };
    let checkpoint = loader::Checkpoint::open(&folder.to_string_lossy(), &options)?;
    let model = Model::load(&checkpoint.config, checkpoint.weights, &Default::default())?;
    let options = GenerateOptions { max_new: 6, stop: vec![], length: RopeLength::Declared(64), decoder_start: None };
    let mut writer = Writer::new(&model, options.clone());
    let prompt: Vec<u32> = (0..20).map(|i| 40 + i * 7 % 50).collect();
    let (first, read) = continued(&mut writer, &prompt)?;
    assert_eq!((first.len(), read), (6, 20));
    // The texts continue the answer, leave the prompt in the middle, repeat the prompt before, and begin differently. The last
    // token of an answer was never read.
    let all = [&prompt[..], &first, &[60, 61]].concat();
    let other = [&prompt[..8], &[77, 78, 79]].concat();
    for (text, new) in [(&all, 3), (&other, 3), (&other, 1), (&all[3..].to_vec(), all.len() - 3)] {
        let fresh = continued(&mut Writer::new(&model, options.clone()), text)?;
        assert_eq!(continued(&mut writer, text)?, (fresh.0, new));
        assert_eq!(fresh.1, text.len());
    }
    Ok(())
}

/// An error of the caller's function comes back unchanged, and an error of this crate is converted to the caller's type.
#[test]
fn a_failure_of_the_callers_function_keeps_its_type() {
    #[derive(Debug)]
    enum Failure {
        Closed(u32),
        Refused(Error),
    }
    impl From<Error> for Failure {
        fn from(error: Error) -> Self {
            Self::Refused(error)
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-austen");
    let options = loader::LoadOptions { quiet: true, ..Default::default() };
    let checkpoint = loader::Checkpoint::open(&folder.to_string_lossy(), &options).unwrap();
    let model = Model::load(&checkpoint.config, checkpoint.weights, &Default::default()).unwrap();
    let options = GenerateOptions { max_new: 3, stop: vec![], length: RopeLength::Declared(64), decoder_start: None };
    let mut first = None;
    let mut written = |prompt: &[u32]| {
        let mut sampler = Sampler::new(SampleOptions::default());
        Writer::new(&model, options.clone()).write(prompt, &mut sampler, &mut |token| {
            first = Some(token);
            Err(Failure::Closed(token))
        })
    };
    assert!(matches!(written(&[]), Err(Failure::Refused(Error::Request { .. }))));
    let closed = written(&[40, 41, 42]);
    assert!(matches!(closed, Err(Failure::Closed(token)) if Some(token) == first));
}
