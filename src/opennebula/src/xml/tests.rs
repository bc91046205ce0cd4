use super::*;

fn text(document: &str) -> String {
    read(document.as_bytes()).unwrap().text
}

#[test]
fn cdata_plain_text_and_references_are_one_text() {
    for (document, want) in [
        ("<A>x</A>", "x"),
        ("<A><![CDATA[x]]></A>", "x"),
        ("<A><![CDATA[<b>&amp;\n]]></A>", "<b>&amp;\n"),
        ("<A>a<![CDATA[b]]>c</A>", "abc"),
        ("<A>&lt;&gt;&amp;&quot;&apos;&#65;&#x42;</A>", "<>&\"'AB"),
        ("<A></A>", ""),
        ("<A/>", ""),
        ("<A><![CDATA[]]></A>", ""),
        ("<?xml version=\"1.0\"?><!-- c --><A x='1'>x<!-- d --></A>\n\n", "x"),
        ("<A>größe</A>", "größe"),
    ] {
        assert_eq!(text(document), want, "{document}");
    }
}

#[test]
fn children_keep_their_order_and_absent_is_empty() {
    let root = read(b"<A><B>1</B><C/><B>2</B></A>").unwrap();
    let all: Vec<&str> = root.all("B").map(|b| b.text.as_str()).collect();
    assert_eq!(all, ["1", "2"]);
    assert_eq!(root.value("C"), Ok(None));
    assert_eq!(root.value("D"), Ok(None));
    let error = root.value("B").unwrap_err();
    assert_eq!(error.to_string(), "the XML has more than one A/B");
}

#[test]
fn a_document_that_does_not_close_is_truncated() {
    let whole = "<A><B><![CDATA[x]]></B><C/></A>";
    for at in 1..whole.len() {
        let error = read(&whole.as_bytes()[..at]).unwrap_err();
        assert!(
            matches!(error, XmlError::Truncated { .. } | XmlError::Malformed { .. }),
            "{at}: {error}"
        );
    }
    assert_eq!(read(b"<A><B>x</B>").unwrap_err(), XmlError::Truncated { at: 11 });
}

#[test]
fn document_types_and_entities_are_refused() {
    let bomb = "<!DOCTYPE l [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><A>&b;</A>";
    let external = "<!DOCTYPE A SYSTEM \"file:///etc/shadow\"><A/>";
    for document in [bomb, external] {
        assert_eq!(read(document.as_bytes()), Err(XmlError::DocType { at: 0 }), "{document}");
    }
    for reference in ["&b;", "&#0;", "&#8;", "&#x1b;", "&#xD800;", "&#1114112;", "&#;"] {
        let error = read(format!("<A>{reference}</A>").as_bytes()).unwrap_err();
        assert!(matches!(error, XmlError::Entity { .. }), "{reference}: {error}");
    }
    for stray in ["<A>a & b</A>", "<A>&</A>", "<A>&b</A>"] {
        assert!(read(stray.as_bytes()).is_err(), "{stray}");
    }
}

#[test]
fn text_and_elements_outside_the_root_are_refused() {
    for document in [
        "x<A/>",
        "<A/>x",
        "<A/><B/>",
        "<A/><![CDATA[x]]>",
        "<A/>&amp;",
        "</A>",
        "<A></B>",
        "<A><B></A></B>",
        "PFZNPg==",
        "<!-- c -->",
        "<>",
        "<",
    ] {
        assert!(read(document.as_bytes()).is_err(), "{document}");
    }
}

#[test]
fn bounds_hold() {
    assert_eq!(read(b""), Err(XmlError::Empty));
    assert_eq!(read(b" \n"), Err(XmlError::Empty));
    assert_eq!(read(&vec![b' '; MAX_INPUT + 1]), Err(XmlError::TooLarge));
    assert_eq!(read(b"<A>\xff</A>"), Err(XmlError::NotUtf8 { at: 3 }));

    let nested = |depth: usize| "<a>".repeat(depth) + &"</a>".repeat(depth);
    assert!(read(nested(MAX_DEPTH).as_bytes()).is_ok());
    assert!(matches!(read(nested(MAX_DEPTH + 1).as_bytes()), Err(XmlError::TooDeep { .. })));
    assert!(matches!(read("<a>".repeat(1_000_000).as_bytes()), Err(XmlError::TooDeep { .. })));

    let wide = |count: usize| format!("<r>{}</r>", "<a/>".repeat(count - 1));
    assert!(read(wide(MAX_ELEMENTS).as_bytes()).is_ok());
    assert_eq!(read(wide(MAX_ELEMENTS + 1).as_bytes()), Err(XmlError::TooMany));
}
