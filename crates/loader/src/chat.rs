//! Chat templates: the Jinja program in a checkpoint that turns a conversation into one prompt.
//!
//! A template comes with its checkpoint and is code that nobody has checked. It runs here in an interpreter without
//! files or network, with a bound on its steps, its time and its output, so that a template that loops for ever is an
//! error like any other. What is not bounded is the memory of values in between: the interpreter offers no hook for it,
//! so a template written to exhaust it, by joining a string to itself again and again or by nesting a list in itself,
//! can. Run templates of strangers in a process with limits, as `attn generate --chat` does
//! (`crates/attn-cli/src/template.rs`).

mod filters;

use crate::{
    error::{LoadError, Result},
    guard::guard,
};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

/// Steps a template may take; real ones take a few hundred per message.
const FUEL: u64 = 5_000_000;
/// Bytes a template may write.
const MAX_OUTPUT: usize = 16 << 20;
/// How long a template may take; real ones take milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes a template may be long; the longest known is about 30 kB.
const MAX_SOURCE: usize = 1 << 17;
/// The compiler follows a chain (`1 + 1 + 1`, `x.a.b`, `elif` after `elif`) with one nested call per link and without a
/// limit. So the stack has to grow with the source: a link is at least two bytes long and takes less than a kilobyte of
/// stack, or four kilobytes in unoptimised builds.
const STACK_PER_BYTE: usize = 4 << 10;
/// For what a template builds while it runs: lists in lists are written and dropped one call per level too.
const STACK: usize = 16 << 20;

/// A checkpoint's chat template. It is compiled only when it is rendered, so that a broken one affects only those who
/// need it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    /// Where it comes from, for messages.
    file: Option<PathBuf>,
}

impl ChatTemplate {
    /// A template of this text.
    #[must_use]
    pub fn new(source: &str) -> Self {
        // A marker for training masks that is specific to transformers and produces no text.
        let mut source = source.to_string();
        for tag in ["generation", "endgeneration"] {
            for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
                let (l, r) =
                    (if open.ends_with('-') { "{#-" } else { "{#" }, if close.starts_with('-') { "-#}" } else { "#}" });
                source = source.replace(&format!("{open} {tag} {close}"), &format!("{l} {tag} {r}"));
            }
        }
        Self { source, file: None }
    }

    /// The same, with the file that errors name.
    pub(crate) fn in_file(self, file: &Path) -> Self {
        Self { file: Some(file.to_path_buf()), ..self }
    }

    /// The template's text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// An error about this template, with the file it comes from.
    #[must_use]
    pub fn failure(&self, reason: &str) -> LoadError {
        match &self.file {
            Some(file) => failed(format!("{}: {reason}", file.display())),
            None => failed(reason.to_string()),
        }
    }

    /// Renders `messages`, pairs of role and content; with `add_generation_prompt` the result ends where the
    /// assistant's answer begins. `bos` and `eos` are the texts of those tokens.
    ///
    /// The result already holds the tokens that begin a text, so encode it without adding any.
    ///
    /// # Errors
    /// The template is absurdly long or not valid Jinja, refuses the conversation (`raise_exception`), fails, or asks for too
    /// much time or output.
    pub fn render<R: AsRef<str>, C: AsRef<str>>(
        &self,
        messages: &[(R, C)],
        add_generation_prompt: bool,
        bos: &str,
        eos: &str,
    ) -> Result<String> {
        if self.source.len() > MAX_SOURCE {
            let length = self.source.len();
            return Err(self.failure(&format!("it is {length} bytes long; at most {MAX_SOURCE} are rendered")));
        }
        let owned = |(role, content): &(R, C)| (role.as_ref().to_string(), content.as_ref().to_string());
        let conversation = Conversation {
            messages: messages.iter().map(owned).collect(),
            add_generation_prompt,
            bos: bos.to_string(),
            eos: eos.to_string(),
        };
        in_bounded_time(self.source.clone(), conversation).map_err(|reason| self.failure(&reason))
    }
}

/// The variables that a template gets.
struct Conversation {
    messages: Vec<(String, String)>,
    add_generation_prompt: bool,
    bos: String,
    eos: String,
}

/// Compiles and renders in a thread with a stack for it. The interpreter counts its steps, but evaluates constant
/// expressions without counting, and one step over a list of 10^12 elements never ends; a thread that takes too long is
/// abandoned.
fn in_bounded_time(source: String, conversation: Conversation) -> Result<String, String> {
    let (sender, receiver) = mpsc::channel();
    let stack = STACK + source.len() * STACK_PER_BYTE;
    let thread = std::thread::Builder::new().name("chat template".to_string()).stack_size(stack);
    // Lists repeated past any length make the interpreter panic when they are written out.
    let job = move || sender.send(guard(|| render(&source, &conversation)).flatten());
    thread.spawn(job).map_err(|e| format!("there is no memory to render it in: {e}"))?;
    match receiver.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(format!("it did not finish within {PATIENCE:?}")),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("rendering it failed".to_string()),
    }
}

fn render(source: &str, conversation: &Conversation) -> Result<String, String> {
    let Conversation { messages, add_generation_prompt, bos, eos } = conversation;
    let env = environment(source).map_err(|e| one_line(&e))?;
    let messages: Vec<Value> =
        messages.iter().map(|(role, content)| context! { role => role, content => content }).collect();
    let vars = context! {
        messages, add_generation_prompt, bos_token => bos, eos_token => eos,
        tools => (), documents => (),
    };
    let template = env.get_template("chat").map_err(|e| one_line(&e))?;
    let mut out = Bounded(Vec::new());
    template.render_captured_to(vars, &mut out).map_err(|e| one_line(&e))?;
    String::from_utf8(out.0).map_err(|_| "its output is not UTF-8".to_string())
}

fn environment(source: &str) -> Result<Environment<'_>, Error> {
    let mut env = Environment::new();
    // As transformers sets Jinja up.
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_fuel(Some(FUEL));
    env.add_function("raise_exception", |msg: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, msg))
    });
    env.add_function("strftime_now", |format: String| strftime(&format, now()));
    filters::add(&mut env);
    env.add_template("chat", source)?;
    Ok(env)
}

fn failed(reason: String) -> LoadError {
    LoadError::ChatTemplate { reason }
}

fn one_line(err: &Error) -> String {
    let mut text = match err.kind() {
        ErrorKind::OutOfFuel => format!("it did not finish within {FUEL} steps"),
        _ => err.to_string(),
    };
    let mut cause = std::error::Error::source(err);
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Output that stops a template which writes without end.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + buf.len() > MAX_OUTPUT {
            return Err(std::io::Error::other(format!("it writes more than {MAX_OUTPUT} bytes")));
        }
        self.0.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// The conversions that templates use, in UTC; days and months in English.
fn strftime(format: &str, unix: i64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, secs) = (unix.div_euclid(86400), unix.rem_euclid(86400));
    let (year, month, day) = civil(days);
    let weekday = DAYS[days.rem_euclid(7) as usize];
    let name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(name),
            Some('b') => out.push_str(&name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{:02}", secs / 3600)),
            Some('M') => out.push_str(&format!("{:02}", secs / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", secs % 60)),
            Some('y') => out.push_str(&format!("{:02}", year.rem_euclid(100))),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant's algorithm).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
        message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}\
        {{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn chatml() {
        let template = ChatTemplate::new(CHATML);
        let text = template.render(&[("user", "hi")], true, "", "").unwrap();
        let want = "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(text, want);
    }

    #[test]
    fn pythonisms() {
        let source = "{{ bos_token }}{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- if m.content.startswith('x') \
            -%}{%- continue -%}{%- endif -%}{{ m['content'].strip().split(',')[0] | upper }}{{ m | tojson }}{%- endfor -%}\
            {%- generation -%}{{ strftime_now('%d %b %Y') | length }}";
        let source = source.replace("{%- generation -%}", "{%- generation -%}{%- endgeneration -%}");
        let text = ChatTemplate::new(&source);
        let text = text.render(&[("user", "xyz"), ("user", " a<b,c ")], false, "<s>", "</s>").unwrap();
        assert_eq!(text, r#"<s>A<B{"content": " a<b,c ", "role": "user"}11"#);
    }

    #[test]
    fn dates() {
        assert_eq!(strftime("%A %d %B %Y %H:%M:%S %y%%%q", 951_827_696), "Tuesday 29 February 2000 12:34:56 00%%q");
    }

    #[test]
    fn refusals_are_errors() {
        let raise = ChatTemplate::new("{{ raise_exception('no system prompt') }}");
        let err = raise.render(&[("user", "x")], true, "", "").unwrap_err().to_string();
        assert!(err.contains("no system prompt"), "{err}");
        let broken = ChatTemplate::new("{% if %}").in_file(Path::new("x/chat_template.jinja"));
        let err = broken.render(&[("user", "x")], true, "", "").unwrap_err().to_string();
        assert!(err.contains("x/chat_template.jinja: syntax error"), "{err}");
        let long = ChatTemplate::new(&"x".repeat(MAX_SOURCE + 1));
        let err = long.render(&[("user", "x")], true, "", "").unwrap_err().to_string();
        assert!(err.contains("bytes long"), "{err}");
    }

    /// As many links as a template may have, of every kind that the compiler follows by calling itself.
    #[test]
    fn chains_of_any_length_compile() {
        for (before, link, after) in [
            ("{{ 1", "+1", " }}"),
            ("{{ 1", "-1", " }}"),
            ("{{ 1", "*1", " }}"),
            ("{{ 1", "//1", " }}"),
            ("{{ 1", "**1", " }}"),
            ("{{ 1", "%1", " }}"),
            ("{{ 'a'", "~'a'", " }}"),
            ("{{ 1", " and 1", " }}"),
            ("{{ 0", " or 0", " }}"),
            ("{{ 1", "<1", " }}"),
            ("{{ 1", " in[1]", " }}"),
            ("{{ 1", "|abs", " }}"),
            ("{{ 1", " is true", " }}"),
            ("{{ 1", " if 1 else 1", " }}"),
            ("{{ x", ".a", " }}"),
            ("{{ x", "[0]", " }}"),
            ("{{ x", "()", " }}"),
            ("{{ x", ".a()", " }}"),
            ("{{ ", "-", "1 }}"),
            ("{{ ", "not ", "1 }}"),
            ("{{ ", "(", "1 }}"),
            ("{% if 0 %}", "{%elif 0%}", "{% endif %}"),
            ("", "{%if 1%}", ""),
            ("", "{%for a in b%}", ""),
        ] {
            let links = (MAX_SOURCE - before.len() - after.len()) / link.len();
            let template = ChatTemplate::new(&format!("{before}{}{after}", link.repeat(links)));
            // It may be an error or not, but the process has to survive.
            if let Err(err) = template.render(&[("user", "x")], true, "", "") {
                let err = err.to_string();
                let said = [
                    "syntax error",
                    "undefined",
                    "number",
                    "operation",
                    "unable",
                    "too large",
                    "overflow",
                    "steps",
                    "unknown",
                ];
                assert!(said.iter().any(|part| err.contains(part)), "{link}: {err}");
            }
        }
    }

    #[test]
    fn endless_templates_end() {
        let forever = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}\
            {% endfor %}{% endfor %}";
        let err = ChatTemplate::new(forever).render(&[("user", "x")], true, "", "").unwrap_err().to_string();
        assert!(err.contains("steps"), "{err}");
        let flood = "{% for a in range(90000) %}{{ messages[0].content }}{% endfor %}";
        let content = "x".repeat(1000);
        let err = ChatTemplate::new(flood).render(&[("user", &content)], true, "", "").unwrap_err().to_string();
        assert!(err.contains("more than"), "{err}");
    }
}
