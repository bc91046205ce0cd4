//! Documents as oned writes them: no declaration, no blanks between elements, values of templates in CDATA.

use quick_xml::Reader;
use quick_xml::events::Event;

/// What an element holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Text written plainly.
    Plain(String),
    /// Text written as a CDATA section.
    Quoted(String),
    /// Elements.
    Elements(Vec<Element>),
}

/// An element; oned uses no attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub content: Content,
}

impl Element {
    /// An element of elements.
    pub fn of(name: &str, elements: Vec<Self>) -> Self {
        Self { name: name.to_owned(), content: Content::Elements(elements) }
    }

    /// An element with plain text.
    pub fn plain(name: &str, text: impl ToString) -> Self {
        Self { name: name.to_owned(), content: Content::Plain(text.to_string()) }
    }

    /// An element with a CDATA section.
    pub fn quoted(name: &str, text: impl ToString) -> Self {
        Self { name: name.to_owned(), content: Content::Quoted(text.to_string()) }
    }

    /// Elements in it.
    pub fn children(&self) -> &[Self] {
        match &self.content {
            Content::Elements(elements) => elements,
            _ => &[],
        }
    }

    /// Text in it.
    pub fn text(&self) -> &str {
        match &self.content {
            Content::Plain(text) | Content::Quoted(text) => text,
            Content::Elements(_) => "",
        }
    }

    /// The first element of that path below it.
    pub fn at(&self, path: &str) -> Option<&Self> {
        path.split('/').try_fold(self, |here, name| here.children().iter().find(|e| e.name == name))
    }

    /// Texts in it, in order, each to be changed.
    pub fn texts_mut(&mut self) -> Vec<&mut String> {
        match &mut self.content {
            Content::Plain(text) | Content::Quoted(text) => vec![text],
            Content::Elements(elements) => elements.iter_mut().flat_map(Self::texts_mut).collect(),
        }
    }

    /// The document.
    pub fn write(&self) -> String {
        let mut out = String::new();
        self.write_to(&mut out);
        out
    }

    fn write_to(&self, out: &mut String) {
        let name = &self.name;
        match &self.content {
            Content::Plain(text) if text.is_empty() => out.push_str(&format!("<{name}/>")),
            Content::Elements(elements) if elements.is_empty() => {
                out.push_str(&format!("<{name}/>"));
            }
            content => {
                out.push_str(&format!("<{name}>"));
                match content {
                    Content::Plain(text) => out.push_str(&escape(text)),
                    // A section cannot hold its own end: oned lets it through as it is, and so do we.
                    Content::Quoted(text) => out.push_str(&format!("<![CDATA[{text}]]>")),
                    Content::Elements(elements) => elements.iter().for_each(|e| e.write_to(out)),
                }
                out.push_str(&format!("</{name}>"));
            }
        }
    }

    /// A document, read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut reader = Reader::from_str(text);
        let mut open: Vec<Self> = vec![Self::of("", Vec::new())];
        loop {
            match reader.read_event().map_err(|e| e.to_string())? {
                Event::Start(start) => {
                    open.push(Self::of(start.name().as_ref(), Vec::new()));
                }
                Event::Empty(empty) => {
                    push(&mut open, Self::of(empty.name().as_ref(), Vec::new()));
                }
                Event::End(_) => {
                    let done = open.pop().ok_or("an end too many")?;
                    push(&mut open, done);
                }
                Event::CData(data) => {
                    last(&mut open).content = Content::Quoted(data.to_string());
                }
                Event::Text(data) => {
                    append(last(&mut open), &data);
                }
                Event::GeneralRef(name) => {
                    let text = match &*name {
                        "lt" => "<",
                        "gt" => ">",
                        "amp" => "&",
                        "quot" => "\"",
                        "apos" => "'",
                        other => return Err(format!("the reference {other}")),
                    };
                    append(last(&mut open), text);
                }
                Event::Eof => break,
                _ => {}
            }
        }
        let mut root = open.pop().filter(|_| open.is_empty()).ok_or("an end is missing")?;
        match &mut root.content {
            Content::Elements(elements) if elements.len() == 1 => Ok(elements.remove(0)),
            _ => Err("not one element".to_owned()),
        }
    }

    /// One line for each text in it, `PATH=text`, or `PATH:text` where it is a CDATA section: documents are compared so.
    pub fn lines(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.lines_to("", &mut found);
        found
    }

    fn lines_to(&self, above: &str, found: &mut Vec<String>) {
        let path = format!("{above}/{}", self.name);
        match &self.content {
            // How an empty value is written is left open by the contract (§3.1).
            content if self.text().is_empty() && self.children().is_empty() => {
                let _ = content;
                found.push(format!("{path}="));
            }
            Content::Plain(text) => found.push(format!("{path}={text}")),
            Content::Quoted(text) => found.push(format!("{path}:{text}")),
            Content::Elements(elements) => elements.iter().for_each(|e| e.lines_to(&path, found)),
        }
    }
}

fn last(open: &mut [Element]) -> &mut Element {
    let at = open.len() - 1;
    &mut open[at]
}

fn push(open: &mut [Element], element: Element) {
    match &mut last(open).content {
        Content::Elements(elements) => elements.push(element),
        // Blanks before it.
        content => *content = Content::Elements(vec![element]),
    }
}

fn append(element: &mut Element, text: &str) {
    match &mut element.content {
        Content::Elements(elements) if !elements.is_empty() => {}
        Content::Elements(_) if text.trim().is_empty() => {}
        Content::Elements(_) => element.content = Content::Plain(text.to_owned()),
        Content::Plain(whole) => whole.push_str(text),
        // Blanks around a section.
        Content::Quoted(_) => {}
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let vm = Element::of(
            "VM",
            vec![
                Element::plain("ID", 7),
                Element::plain("NAME", "a<b & c"),
                Element::of(
                    "TEMPLATE",
                    vec![Element::quoted("CPU", "1"), Element::quoted("X", "")],
                ),
                Element::of("MONITORING", Vec::new()),
            ],
        );
        let text = vm.write();
        assert_eq!(
            text,
            "<VM><ID>7</ID><NAME>a&lt;b &amp; c</NAME><TEMPLATE><CPU><![CDATA[1]]></CPU><X><![CDATA[]]></X></TEMPLATE>\
             <MONITORING/></VM>"
        );
        let read = Element::read(&text).unwrap();
        assert_eq!(read.lines(), vm.lines());
        assert_eq!(read.at("TEMPLATE/CPU").unwrap().text(), "1");
        assert_eq!(
            vm.lines(),
            [
                "/VM/ID=7",
                "/VM/NAME=a<b & c",
                "/VM/TEMPLATE/CPU:1",
                "/VM/TEMPLATE/X=",
                "/VM/MONITORING="
            ]
        );
    }

    #[test]
    fn a_cut_document_is_none() {
        for text in ["", "<VM>", "<VM><ID>1</ID>", "<VM/><VM/>"] {
            assert!(Element::read(text).is_err(), "{text}");
        }
    }
}
