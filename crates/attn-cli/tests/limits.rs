//! What the program does when it is asked for too much, interrupted, or handed a hostile chat template.

mod common;

use common::{ATTN, attn, path, repository};
use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A failure of one line on stderr, nothing on stdout, and each of `parts` said.
fn refused(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty() && stderr.starts_with("error: "), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "it should say {part:?}: {stderr}");
    }
}

/// The embedded model as a folder, with these files changed or added.
fn model(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(repository().join("models/tiny-austen").join(name), folder.path().join(name)).unwrap();
    }
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[cfg(target_os = "linux")]
mod memory {
    use super::*;

    /// `attn` with an address space of `megabytes`.
    fn within(megabytes: usize, args: &[&str]) -> Output {
        let script = format!("ulimit -v {} && exec \"$0\" \"$@\"", megabytes * 1024);
        let mut command = Command::new("sh");
        command.args(["-c", &script, ATTN]).args(args).args(["--threads", "1"]).env("HF_HUB_OFFLINE", "1");
        command.output().unwrap()
    }

    #[test]
    fn more_tokens_than_any_machine_holds_are_refused_before_anything_is_allocated() {
        for scaling in [&[][..], &["--rope-scaling", "dynamic", "--rope-factor", "2"]] {
            let args = ["generate", "-p", "x", "-n", "4000000000"];
            let output = attn(&[&args[..], scaling].concat()).output().unwrap();
            refused(&output, &["4000000001 tokens take", "GB", "tokens would fit", "are free"]);
        }
    }

    #[test]
    fn every_command_that_runs_a_model_asks_first() {
        let folder = tempfile::tempdir().unwrap();
        let (ids, out) = (folder.path().join("ids.json"), folder.path().join("out.safetensors"));
        let tokens = 60_000;
        fs::write(&ids, serde_json::to_string(&[vec![5; tokens]]).unwrap()).unwrap();
        let text = folder.path().join("text.txt");
        fs::write(&text, "It was a truth universally acknowledged. ".repeat(40_000)).unwrap();
        let prompt = folder.path().join("prompt.txt");
        fs::write(&prompt, "It was a truth universally acknowledged. ".repeat(20_000)).unwrap();
        for args in [
            &["logits", "--ids", path(&ids), "--out", path(&out)][..],
            &["perplexity", "--text", path(&text), "--context", "200000"],
            &["compare", "--text", path(&text), "--contexts", "200000", "--modes", "none", "--factor", "2"],
            &["generate", "-f", path(&prompt), "-n", "1"],
        ] {
            let output = within(600, args);
            refused(&output, &["tokens take about", "bytes", "tokens would fit"]);
            // The message says how many tokens would fit, which is not a tiny number.
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            let fits = stderr.split(" tokens would fit").next().and_then(|s| s.rsplit(' ').next()).unwrap();
            assert!(fits.parse::<usize>().is_ok_and(|n| n > 1000), "{stderr}");
        }
        assert!(!out.exists());
        let short = within(600, &["perplexity", "--max-tokens", "512", "--context", "256"]);
        assert!(short.status.success(), "{}", String::from_utf8_lossy(&short.stderr));
    }

    #[test]
    fn texts_take_no_more_than_their_ids() {
        /// Megabytes of address space, of which the program and the arenas of its allocator reserve about 250 before it reads
        /// anything. Texts of 42 MB that were held whole with their tokens would take 6 GB.
        const TEXT_LIMIT: usize = 400;
        let folder = tempfile::tempdir().unwrap();
        let sentence = "It was a truth universally acknowledged. ";
        let lines: String = (0..400_000).map(|i| format!("{{\"text\": \"document {i} of many\"}}\n")).collect();
        let mut seen = vec![];
        for (name, text) in [
            ("lines.txt", format!("{sentence}\n").repeat(1_000_000)),
            ("marked.txt", format!("\u{feff}{sentence}\n") + &format!("{sentence}\n").repeat(1_000_000)),
            ("one-line.txt", sentence.repeat(1_000_000)),
            ("documents.jsonl", lines),
        ] {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            let args = ["perplexity", "--text", path(&file), "--context", "256", "--max-tokens", "1024", "--json"];
            let output = within(TEXT_LIMIT, &args);
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            let cell: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            seen.push(cell["nll"].as_f64().unwrap());
        }
        assert_eq!(seen[0], seen[1], "a byte order mark is no text");
        // What has no place to cut it is refused before it fills the memory.
        let zeros = folder.path().join("zeros.txt");
        fs::write(&zeros, vec![0; 30_000_000]).unwrap();
        refused(&within(TEXT_LIMIT, &["perplexity", "--text", path(&zeros), "--max-tokens", "512"]), &["can't be cut"]);
        let prompt = within(300, &["generate", "-f", path(&folder.path().join("lines.txt")), "-n", "1"]);
        refused(&prompt, &["lines.txt takes about 42.0 MB"]);
        for endless in ["/dev/zero", "/dev/full"] {
            for args in [&["compare", "--from", endless][..], &["generate", "-f", endless]] {
                refused(&within(TEXT_LIMIT, args), &[endless]);
            }
        }
    }

    /// Each of these needs many times the memory of its file: it is counted while the file is read, and refused in
    /// time.
    #[test]
    fn what_is_made_of_a_file_is_counted_too() {
        const LIMIT: usize = 400;
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: Vec<u8>| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let zeros = file("zeros.txt", vec![0; 3_000_000]);
        let letters = file("letters.txt", vec![b'x'; 60_000_000]);
        let documents = file("documents.jsonl", b"{\"text\": \"a b\"}\n".repeat(400_000));
        let line = file("line.jsonl", [&b"{\"text\": \"x\", \"more\": ["[..], &b"1,".repeat(20_000_000)].concat());
        let out = folder.path().join("out");
        for (args, part) in [
            // A prompt, haystacks and a training text that cannot be cut, so that tokenising them would fill the memory.
            (&["generate", "-n", "1", "-f", path(&zeros)][..], "can't be cut"),
            (&["passkey", "--contexts", "256", "--haystack", path(&zeros)], "can't be cut"),
            (&["retrieval", "--contexts", "256", "--haystack", path(&letters)], "can't be cut"),
            (&["train", "--steps", "1", "--out", path(&out), "--text", path(&letters)], "the end of a word"),
            // Very many documents of two tokens, and a very long line.
            (&["perplexity", "--protocol", "lm-eval", "--text", path(&documents)], "documents.jsonl takes about"),
            (&["perplexity", "--text", path(&line)], "line.jsonl takes about"),
        ] {
            let args: Vec<&str> = args.iter().copied().chain(["--no-memory-check"]).collect();
            refused(&within(LIMIT, &args), &[part]);
        }
        // Ids take as little memory as in the file; other keys of a line take none.
        let rows = file("ids.json", format!("[[{}1]]", "1,".repeat(4_000_000)).into_bytes());
        refused(&within(LIMIT, &["logits", "--out", path(&out), "--ids", path(&rows)]), &["4000001 tokens take about"]);
        let text = "It was a truth universally acknowledged. ".repeat(50);
        let more = format!("{{\"more\": [{}1], \"text\": {text:?}}}\n{{\"text\": \"\"}}", "1,".repeat(3_000_000));
        let more = file("more.jsonl", more.into_bytes());
        let output = within(LIMIT, &["perplexity", "--context", "64", "--text", path(&more)]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // A long haystack is kept only as tokens.
        let long = file("long.txt", b"It was a truth universally acknowledged. ".repeat(500_000));
        let args =
            ["passkey", "--contexts", "256", "--modes", "none", "--depths", "0.5", "--trials", "1", "--haystack"];
        let output = within(LIMIT, &[&args[..], &[path(&long)]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn large_arrays_of_a_gguf_file_take_what_they_hold() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.gguf");
        let count = 12_000_000u64;
        let key = b"general.numbers";
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend([0u64, 1, key.len() as u64].iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend(key);
        // An array (9) of 16-bit integers (3).
        bytes.extend([9u32, 3].iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend(count.to_le_bytes());
        bytes.resize(bytes.len() + 2 * count as usize, 7);
        fs::write(&file, bytes).unwrap();
        refused(&within(250, &["inspect", path(&file)]), &["general.architecture: is missing"]);
    }

    #[test]
    fn weights_that_do_not_fit_are_refused_too() {
        // Tensors of zeros in a file with holes: large on paper, small on disk.
        let folder = model(&[]);
        let rows = 1u64 << 20;
        let header = format!(
            "{{\"model.embed_tokens.weight\":{{\"dtype\":\"F32\",\"shape\":[{rows},1024],\"data_offsets\":[0,{}]}}}}",
            rows * 4096
        );
        let file = fs::File::create(folder.path().join("model.safetensors")).unwrap();
        std::io::Write::write_all(&mut &file, &(header.len() as u64).to_le_bytes()).unwrap();
        std::io::Write::write_all(&mut &file, header.as_bytes()).unwrap();
        file.set_len(8 + header.len() as u64 + rows * 4096).unwrap();
        let output = within(2000, &["inspect", path(folder.path()), "--no-mmap"]);
        refused(&output, &["the weights of", "4.3 GB", "--dtype"]);
    }
}

/// Machines are shared: the figures of a run have the same bits however many other programs use the cores.
#[test]
fn figures_do_not_depend_on_who_else_computes() {
    let args = ["compare", "--contexts", "256,512", "--modes", "none,yarn,rerope", "--max-tokens", "2048", "--json"];
    let start = || attn(&args).args(["--threads", "2"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let cells = |child: Child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let figures = ["mode", "context", "nll", "perplexity", "interval", "tokens"];
        let cells = found["cells"].as_array().unwrap().iter();
        cells.map(|cell| figures.map(|key| cell[key].clone())).collect::<Vec<_>>()
    };
    let alone = cells(start());
    assert!(alone.len() == 6 && alone.iter().all(|cell| cell[2].as_f64().is_some_and(f64::is_finite)), "{alone:?}");
    let together: Vec<Child> = (0..4).map(|_| start()).collect();
    for child in together {
        assert_eq!(cells(child), alone);
    }
}

/// Files can't grow past a limit, as on a full disk. Measured cells are kept, no report is incomplete, and the same command
/// succeeds once there is room.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_nothing_that_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (file, page, table, plot) = (at("run.jsonl"), at("page.html"), at("table.csv"), at("plot.svg"));
    let args = [
        ["compare", "--contexts", "256,512", "--modes", "none,yarn,dynamic", "--max-tokens", "2048"].as_slice(),
        &["--run", path(&file), "--html", path(&page), "--csv", path(&table), "--plot", path(&plot)],
    ]
    .concat();
    // Limits in blocks of 512 bytes: for nothing, for a part of the run file, for the run file but not the page. Exceeding one is
    // an error of the write if the signal is ignored, and otherwise kills the process.
    for blocks in [0, 3, 8, 12] {
        for trap in ["trap '' XFSZ;", ""] {
            let script = format!("{trap} ulimit -f {blocks}; exec \"$0\" \"$@\"");
            let limited = Command::new("sh").args(["-c", &script, ATTN]).args(&args).output().unwrap();
            assert!(!limited.status.success(), "{blocks}");
            for report in [&page, &table, &plot] {
                assert!(!fs::metadata(report).is_ok_and(|found| found.len() == 0), "{report:?} is empty");
            }
            let page = fs::read_to_string(&page).unwrap_or_default();
            assert!(page.is_empty() || page.trim_end().ends_with("</html>"));
        }
    }
    let cells = |args: &[&str]| {
        let found = common::json(args);
        let cells = found["cells"].as_array().unwrap().iter();
        cells.map(|cell| (cell["mode"].to_string(), cell["nll"].to_string())).collect::<Vec<_>>()
    };
    let with_room = cells(&[&args[..], &["--json"]].concat());
    assert_eq!(with_room, cells(&[&args[..7], &["--json"]].concat()));
    let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    // A killed process leaves the files that it had begun under temporary names.
    let mut names: Vec<String> = names.filter(|name| !(name.starts_with('.') && name.ends_with(".tmp"))).collect();
    names.sort();
    assert_eq!(names, ["page.html", "plot.svg", "run.jsonl", "table.csv"]);
}

#[cfg(unix)]
mod interrupted {
    use super::*;

    /// What Ctrl-C in a terminal sends.
    fn interrupt(child: &Child) {
        let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn ctrl_c_ends_an_answer_and_then_the_conversation() {
        let folder = model(&[TURNS]);
        let mut child = conversation(&folder, &["-n", "2000"]);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"Good morning\n").unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 8]).unwrap();
        interrupt(&child);
        // The program still reads messages.
        stdin.write_all(b"Go on\n").unwrap();
        drop(stdin);
        let mut rest = String::new();
        let mut stderr = String::new();
        let reader = std::thread::spawn(move || stdout.read_to_string(&mut rest));
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        reader.join().unwrap().unwrap();
        assert!(child.wait().unwrap().success(), "{stderr}");
        let new: Vec<usize> = stderr
            .lines()
            .filter_map(|line| line.split("generated: ").nth(1)?.split(' ').next()?.parse().ok())
            .collect();
        assert!(new.len() == 2 && new[0] < 2000, "{new:?} {stderr}");
    }

    #[test]
    fn generating_ends_with_130_and_without_a_word() {
        let args = ["generate", "-p", "It was a truth", "-n", "3000", "--rope-scaling", "rerope"];
        let mut child = attn(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut some = [0; 8];
        child.stdout.as_mut().unwrap().read_exact(&mut some).expect("text comes");
        interrupt(&child);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(stderr.is_empty(), "{stderr}");
    }

    #[test]
    fn files_are_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let ids = folder.path().join("ids.json");
        let rows = vec![vec![7; 2000]; 40];
        fs::write(&ids, serde_json::to_string(&rows).unwrap()).unwrap();
        let out = folder.path().join("out.safetensors");
        let args = ["logits", "--ids", path(&ids), "--out", path(&out)];
        // Interrupts at different moments: while loading, while computing and while writing.
        for wait in [30, 300, 1000, 1500] {
            let mut child = attn(&args).stderr(Stdio::null()).spawn().unwrap();
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(wait) && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            let done = child.try_wait().unwrap().is_some();
            if !done {
                interrupt(&child);
            }
            let code = child.wait().unwrap().code();
            let whole = fs::metadata(&out).is_ok_and(|m| m.len() > 40 * 2000 * 1024 * 4);
            // A process that was not up yet is ended by the signal itself.
            assert!(matches!((code, whole), (Some(130) | None, false) | (Some(0 | 130), true)), "{code:?} {whole}");
            let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names.len(), 1 + usize::from(whole), "{names:?}");
            let _ = fs::remove_file(&out);
        }
    }
}

#[test]
fn a_chat_template_renders_in_its_own_process() {
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";
    let folder = model(&[("chat_template.jinja", template)]);
    let chat = attn(&["generate", path(folder.path()), "--chat", "-p", "Hi there", "-n", "8"]).output().unwrap();
    let spelt = "<user>Hi there<assistant>";
    let plain = attn(&["generate", path(folder.path()), "-p", spelt, "-n", "8"]).output().unwrap();
    assert!(chat.status.success(), "{}", String::from_utf8_lossy(&chat.stderr));
    assert_eq!(chat.stdout, plain.stdout);
    let none = attn(&["generate", "--chat", "-p", "Hi there"]).output().unwrap();
    refused(&none, &["not a chat model"]);
}

/// A process in a conversation, with a template that spells every turn out.
fn conversation(folder: &tempfile::TempDir, args: &[&str]) -> Child {
    let all = [&["generate", path(folder.path()), "--conversation"], args].concat();
    attn(&all).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

const TURNS: (&str, &str) =
    ("chat_template.jinja", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>");

#[test]
fn a_conversation_is_the_template_of_all_turns_and_reads_only_what_is_new() {
    let folder = model(&[TURNS]);
    let mut child = conversation(&folder, &["-p", "Good morning", "--system", "Be kind", "-n", "12"]);
    child.stdin.take().unwrap().write_all(b"\nTell me\\\nmore of it\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (answers, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    let alone = |prompt: &str| {
        let output = attn(&["generate", path(folder.path()), "-p", prompt, "-n", "12"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let opening = "<system>Be kind<user>Good morning<assistant>";
    let first = alone(opening);
    let begun = first.strip_suffix('\n').unwrap();
    let second = alone(&format!("{opening}{begun}<user>Tell me\nmore of it<assistant>"));
    assert_eq!(answers, first + &second);
    let read: Vec<usize> =
        stderr.lines().filter_map(|line| line.strip_prefix("[prompt: ")?.split(' ').next()?.parse().ok()).collect();
    let whole = opening.len() + 12;
    assert!(read.len() == 2 && read[1] < whole && read[1] < 2 * read[0], "{read:?} {stderr}");
}

/// Without a limit on the address space, which only Linux has here, these would fill the memory first.
#[cfg(target_os = "linux")]
#[test]
fn hostile_chat_templates_are_errors_in_bounded_time_and_memory() {
    let double =
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    let captured = format!("{{% set a0 %}}{}{{% endset %}}", "y".repeat(1000))
        + &(0..40)
            .map(|i| format!("{{% set a{} %}}{{{{ a{i} }}}}{{{{ a{i} }}}}{{% endset %}}", i + 1))
            .collect::<String>();
    for (template, part) in [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{{ ([1] * 10 ** 18) | list | length }}", "chat template"),
        // It depends on the machine whether memory or time ends first.
        (double, "it "),
        (&captured, "it "),
        ("{{ ('x' * 90000000).replace('x', 'y' * 90000000) | length }}", "it "),
        ("{{ 2 in [1] * 10 ** 12 }}", "did not finish within 5s"),
    ] {
        let folder = model(&[("chat_template.jinja", template)]);
        let started = Instant::now();
        let output = attn(&["generate", path(folder.path()), "--chat", "-p", "hi"]).output().unwrap();
        refused(&output, &["chat template", part]);
        assert!(started.elapsed() < Duration::from_secs(60), "{template}");
    }
    let _ = (double, captured);
}

#[test]
fn unknown_config_keys_are_refused_or_passed_over_with_a_warning() {
    let config = fs::read_to_string(repository().join("models/tiny-austen/config.json")).unwrap();
    let config = config.replacen('{', "{\"clever_trick\": 3, \"other_trick\": [1],", 1);
    let folder = model(&[("config.json", &config)]);
    let output = attn(&["inspect", path(folder.path())]).output().unwrap();
    refused(&output, &["clever_trick", "--allow-unknown-config-keys"]);
    let output = attn(&["inspect", path(folder.path()), "--allow-unknown-config-keys"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !output.stdout.is_empty(), "{stderr}");
    assert!(stderr.starts_with("warning: ") && stderr.contains("clever_trick, other_trick"), "{stderr}");
}
