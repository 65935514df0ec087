package config

import "bytes"

// maxTokens bounds the words and signs of a file: HCL keeps a hundred bytes
// of each, twice over.
const maxTokens = 4_000_000

// scanQuick tells, without building tokens, that a file of the usual kind is
// not nested too deeply. It may overestimate, never underestimate; anything
// unusual makes it say that it does not know.
func scanQuick(src []byte) (f facts, sure, tooMany bool) {
	levels := []level{{newlines: true}}
	depth, tokens := 0, 0
	for i := 0; i < len(src); {
		if depth > maxNesting {
			return f, false, crudeTokens(src) > maxTokens
		}
		top := &levels[len(levels)-1]
		c := src[i]
		switch {
		case c == ' ' || c == '\t' || c == '\r':
			i++
			continue
		case c == '\n':
			if top.newlines {
				depth -= top.pending
				top.pending = 0
			}
			i++
		case c == '#' || c == '/' && i+1 < len(src) && src[i+1] == '/':
			i = endOfLine(src, i)
			if top.newlines { // the comment's token takes the newline with it
				depth -= top.pending
				top.pending = 0
			}
		case isLetter(c):
			from := i
			for i < len(src) && (isLetter(src[i]) || src[i] >= '0' && src[i] <= '9' || src[i] == '-') {
				i++
			}
			switch string(src[from:i]) {
			case "for":
				f.loops = true
				top.newlines = false
			case "dynamic":
				f.dynamic = true
			}
		case c >= '0' && c <= '9':
			from := i
			for i < len(src) && (src[i] >= '0' && src[i] <= '9' || src[i] == '.') {
				i++
			}
			if i-from > maxExponent || i < len(src) && isLetter(src[i]) {
				return f, false, crudeTokens(src) > maxTokens
			}
		case c == '"':
			end, deepest := quickString(src, i+1, maxNesting-depth)
			if end < 0 || deepest > maxNesting-depth {
				return f, false, crudeTokens(src) > maxTokens
			}
			tokens += 2 + deepest
			i = end
		case c == '{':
			levels = append(levels, level{newlines: true})
			depth++
			i++
		case c == '(' || c == '[':
			top.pending++
			levels = append(levels, level{})
			depth += 2
			i++
		case c == '}' || c == ')' || c == ']':
			if len(levels) == 1 {
				return f, false, crudeTokens(src) > maxTokens
			}
			depth -= top.pending + 1
			levels = levels[:len(levels)-1]
			i++
		case c == ',':
			depth -= top.pending
			top.pending = 0
			i++
		case bytes.IndexByte([]byte("=.:?-+*!&|>%"), c) >= 0 && (i+1 == len(src) || src[i+1] != '{'):
			top.pending++
			depth++
			i++
		default: // heredocs, block comments, letters beyond ASCII, garbage
			return f, false, crudeTokens(src) > maxTokens
		}
		tokens++
		if tokens > maxTokens {
			return f, false, true
		}
	}
	return f, true, false
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' }

func endOfLine(src []byte, i int) int {
	if n := bytes.IndexByte(src[i:], '\n'); n >= 0 {
		return i + n + 1
	}
	return len(src)
}

// quickString returns the end of a quoted string that begins before i, and
// how deep its templates can be nested at most: those of the simple form
// ${name.name}. The end is -1 if the string is not that simple.
func quickString(src []byte, i, room int) (end, deepest int) {
	for ; i < len(src); i++ {
		switch src[i] {
		case '"':
			return i + 1, deepest + 2
		case '\\':
			if i++; i < len(src) && src[i] == '\n' {
				return -1, 0
			}
		case '\n':
			return -1, 0
		case '%':
			if i+1 < len(src) && src[i+1] == '{' {
				return -1, 0
			}
		case '$':
			if i+1 >= len(src) || src[i+1] != '{' {
				continue
			}
			if src[i-1] == '$' { // an escape, but who knows how many of them
				return -1, 0
			}
			n := bytes.IndexAny(src[i+2:min(len(src), i+2+room)], "}\"{([%\n\\#/")
			if n < 0 || src[i+2+n] != '}' {
				return -1, 0
			}
			deepest = max(deepest, n+2)
			i += 2 + n
		}
	}
	return -1, 0
}

// crudeTokens is at least about as much as there are tokens.
func crudeTokens(src []byte) (n int) {
	word := false
	for _, c := range src {
		switch {
		case isLetter(c), c >= '0' && c <= '9', c >= 0x80:
			n += btoi(!word)
			word = true
		default:
			word = false
			n += btoi(c != ' ' && c != '\t' && c != '\r')
		}
	}
	return n
}
