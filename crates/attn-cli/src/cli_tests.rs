use super::*;
use crate::options::spelled_out;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Cli, String> {
    Cli::try_parse_from(spelled_out(line.split(' ').map(Into::into))).map_err(|error| error.to_string())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_of_the_documentation_parses() {
    for line in [
        "attn generate -p x",
        "attn generate org/name -p x -n 5 --temperature 0.8 --top-p 0.9 --top-k 0 --repeat-penalty 1.1 --seed 7 --chat",
        "attn generate -f prompt.txt --temp 0.5",
        "attn perplexity m --text f --context 512 --stride 256 --max-tokens 9 --json --bos on",
        "attn compare m --text f --contexts 256,512 --modes none,ntk-by-parts --factor auto --csv c --plot p.svg --json",
        "attn compare --factor 2.5",
        "attn compare a b c --text f --contexts 256 --modes checkpoint,yarn --run r --shard 1/2 --json",
        "attn requests m --max-length 512 --rope-scaling yarn --rope-factor 2 --bos on",
        "attn retrieval m --contexts 512 --metric answer_nll",
        "attn logits m --ids a.json --out b.safetensors --decode --greedy 4 --decoder-ids c.json",
        "attn inspect m --json --rope-scaling yarn --rope-factor 4 --rope-theta 1e6 --rope-original-context 4096",
        "attn inspect --rope-param beta_fast=16 --rope-param beta_slow=2 --rope-length exact --dtype bf16",
        "attn inspect --rope-length 4096 --device cuda:1 --keep-quantized --no-mmap --offline --threads 2",
        "attn inspect --allow-unknown-config-keys --no-memory-check",
        "attn generate -p x --cache-type-k q8_0 --cache-type-v q4_0",
        "attn bench model m -ctk f16 -ctv bf16",
        "attn tokenize m --text f --text-field body --max-tokens 9 --bos off --ids",
        "attn download org/name@main",
        "attn bench attention --dtype bf16 --batch 2 --heads 9 --kv-heads 3 --head-dim 64 --seq 4096 --json --runs 3",
        "attn bench attention --decode --bias alibi --window 512 --path avx2 --device cuda:0 --threads 2",
        "attn bench attention --backward --against candle",
        "attn bench model m --dtype bf16 --keep-quantized --prompt 512 --generate 64 --depth 4096 --batch 8 --runs 3 --json",
        "attn bench model -p 512 -n 64",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    for (line, part) in [
        ("attn compare --modes none,yarm", "yarm"),
        ("attn compare --factor 0.5", "at least 1"),
        ("attn compare --contexts 0", "at least 1"),
        ("attn compare a b --search --contexts 512", "--search"),
        ("attn compare a b --rope-theta 1e4", "--rope-theta"),
        ("attn requests --max-length 0", "at least 1"),
        ("attn retrieval --metric nll", "known: found, answer_nll"),
        ("attn compare --contexts 99999999999999999999", "at most"),
        ("attn inspect --rope-scaling yarm", "unknown scaling"),
        ("attn inspect --rope-scaling checkpoint", "unknown scaling"),
        ("attn inspect --rope-factor nan", "at least 1"),
        ("attn inspect --rope-theta -1", "--rope-theta"),
        ("attn inspect --rope-param beta", "key=value"),
        ("attn inspect --rope-length soon", "declared, exact or a number"),
        ("attn inspect --device tpu", "known: cpu"),
        ("attn inspect --device cuda:x", "cuda:N"),
        ("attn inspect --dtype f64", "f32"),
        ("attn inspect -ctk q5_0", "one of f32, f16, bf16, q8_0, q4_0"),
        ("attn inspect -- -ctk q8_0", "unexpected"),
        ("attn generate -f a --conversation", "cannot be used"),
        ("attn generate -p a -f b", "cannot be used"),
        ("attn generate -p a --temperature inf", "at least 0"),
        ("attn generate -p a --top-p 1.5", "at most 1"),
        ("attn perplexity --stride 0", "at least 1"),
        ("attn logits m --ids a", "--out"),
        ("attn download", "MODEL"),
        ("attn compere", "compare"),
        ("attn bench attention --path sse", "avx512"),
        ("attn bench attention --bias t5", "relative"),
        ("attn bench attention --decode --backward", "cannot be used"),
        ("attn bench attention --seq 0", "at least 1"),
        ("attn bench model --runs 0", "at least 1"),
    ] {
        let error = parse(line).expect_err(line);
        assert!(error.contains(part), "{line}: {error}");
    }
}
