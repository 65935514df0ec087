package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Every broken file is refused with exit code 1, says what is wrong and where,
// and does so alike in check and run.
func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	dir := shortTempDir(t)
	replace := func(old, new string) string {
		if !strings.Contains(validFile, old) {
			panic(old)
		}
		return strings.Replace(validFile, old, new, 1)
	}
	const second = "listener \"tcp\" \"two\" {\n  address  = %q\n  upstream = upstream.app\n}\n"
	for name, c := range map[string]struct {
		text string
		says []string
	}{
		"empty":                 {"", []string{"listener"}},
		"only a comment":        {"# nothing\n", []string{"listener"}},
		"not text":              {"\x00\x01\x02\xff\xfe", []string{".hcl:1"}},
		"unclosed block":        {`listener "tcp" "edge" {`, []string{".hcl:1"}},
		"unclosed string":       {"locals {\n a = \"x\n}\n", []string{".hcl:2"}},
		"unknown block":         {validFile + "lisstener \"tcp\" \"x\" {}\n", []string{".hcl:9", "lisstener", `"listener"`}},
		"unknown inner block":   {replace("upstream = upstream.app", "upstream = upstream.app\n  timeout { idle = \"1s\" }"), []string{".hcl:4", "timeouts"}},
		"unknown attribute":     {replace("upstream = ", "upstrem = "), []string{".hcl:3", "upstrem", `"upstream"`}},
		"wrong listener kind":   {replace(`"tcp"`, `"tpc"`), []string{".hcl:1", "tpc", "tcp"}},
		"label missing":         {replace(`"tcp" "edge"`, `"tcp"`), []string{".hcl:1"}},
		"number for a string":   {replace(`"127.0.0.1:8080"`, "[8080]"), []string{".hcl:2"}},
		"string for a number":   {replace(`{ address = "127.0.0.1:9090"`, "{\n address = \"127.0.0.1:9090\"\n weight = \"heavy\"\n"), []string{".hcl:9", "weight"}},
		"attribute for a block": {validFile + "upstream = 5\n", []string{".hcl:9", "upstream"}},
		"duplicate listener":    {validFile + fmt.Sprintf(strings.Replace(second, `"two"`, `"edge"`, 1), "127.0.0.1:8081"), []string{".hcl:9", "edge", ":1"}},
		"duplicate server":      {replace("server \"a\"", "server \"a\" { address = \"127.0.0.1:1\" }\n  server \"a\""), []string{".hcl:8", `"a"`}},
		"duplicate attribute":   {replace("  upstream = upstream.app", "  upstream = upstream.app\n  upstream = upstream.app"), []string{".hcl:4", "upstream"}},
		"address overlap":       {validFile + fmt.Sprintf(second, ":8080"), []string{".hcl:10", "8080", "edge", ".hcl:2"}},
		"range overlap":         {validFile + fmt.Sprintf(second, "127.0.0.1:8070-8090"), []string{".hcl:10", "edge", ".hcl:2"}},
		"unknown upstream":      {replace("upstream.app", "upstream.apps"), []string{".hcl:3", "apps", "app"}},
		"not a reference":       {replace("upstream.app", `"app"`), []string{".hcl:3", "upstream.app"}},
		"unknown local":         {replace(`"127.0.0.1:8080"`, "local.adress"), []string{".hcl:2", "adress"}},
		"local in itself":       {validFile + "locals { a = local.a }\n", []string{".hcl:9", "a"}},
		"locals in a circle":    {validFile + "locals {\n a = local.b\n b = local.c\n c = local.a\n}\n", []string{"local"}},
		"unknown function":      {replace(`"127.0.0.1:8080"`, `formatt("x")`), []string{".hcl:2", "formatt", "format"}},
		"missing environment":   {replace(`"127.0.0.1:8080"`, `env("NO_SUCH_VARIABLE")`), []string{".hcl:2", "NO_SUCH_VARIABLE"}},
		"missing file":          {replace(`"127.0.0.1:8080"`, `file("no-such-file")`), []string{".hcl:2", "no-such-file"}},
		"bad duration":          {validFile + "process { shutdown_timeout = \"10 minutes\" }\n", []string{".hcl:9", "10 minutes"}},
		"negative duration":     {validFile + "process { shutdown_timeout = \"-1s\" }\n", []string{".hcl:9", "-1s"}},
		"bad size":              {replace("upstream = upstream.app", "upstream = upstream.app\n limits { bandwidth_in = \"10 apples\" }"), []string{".hcl:4", "10 apples"}},
		"bad rate":              {replace("upstream = upstream.app", "upstream = upstream.app\n limits { rate = \"fast\" }"), []string{".hcl:4", "fast"}},
		"bad prefix":            {replace("upstream = upstream.app", "upstream = upstream.app\n allow = [\"10.0.0.0/33\"]"), []string{".hcl:4", "10.0.0.0/33"}},
		"port too high":         {replace("8080", "65536"), []string{".hcl:2", "65536"}},
		"relative unix path":    {replace("127.0.0.1:9090", "unix:app.sock"), []string{".hcl:7", "app.sock"}},
		"route and upstream":    {replace("upstream = upstream.app", "upstream = upstream.app\n route \"x\" { reject = true }"), []string{".hcl:", "upstream"}},
		"route to nowhere":      {replace("upstream = upstream.app", "route \"x\" {}"), []string{".hcl:3", "upstream"}},
		"upstream of nobody":    {validFile + "upstream \"void\" {}\n", []string{".hcl:9", "void", "server"}},
		"unknown policy":        {replace("upstream \"app\" {", "upstream \"app\" {\n  balance = \"least_con\""), []string{".hcl:7", "least_conn"}},
		"negative weight":       {replace(`{ address = "127.0.0.1:9090"`, "{\n address = \"127.0.0.1:9090\"\n weight = -1\n"), []string{".hcl:9", "weight"}},
		"no upstream at all":    {"listener \"tcp\" \"edge\" {\n  address = \":8080\"\n}\n", []string{".hcl:1", "upstream"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := writeFile(t, filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".hcl"), c.text)
			for _, cmd := range []string{"check", "run"} {
				code, out, errs := Run(t, cmd, "-c", file)
				if code != 1 {
					t.Errorf("%s: exit code %d, want 1\n%s%s", cmd, code, out, errs)
				}
				for _, want := range c.says {
					if !strings.Contains(out+errs, want) {
						t.Errorf("%s: nothing about %q in:\n%s%s", cmd, want, out, errs)
					}
				}
			}
		})
	}
}

// Files made to exhaust a parser are refused or read in bounded time, and
// crash nothing.
func TestHugeAndRecursiveConfiguration(t *testing.T) {
	t.Parallel()
	const size = 10 << 20
	servers := func(n int) string {
		var b strings.Builder
		b.WriteString("listener \"tcp\" \"edge\" {\n  address  = \"127.0.0.1:0\"\n  upstream = upstream.app\n}\nupstream \"app\" {\n")
		for i := range n {
			fmt.Fprintf(&b, "  server \"server-%d\" { address = \"10.%d.%d.%d:8080\" }\n", i, i>>16, i>>8&255, i&255)
		}
		return b.String() + "}\n"
	}
	for name, c := range map[string]struct {
		text  string
		valid bool
	}{
		"10 000 servers":          {servers(10_000), true},
		"10 MB of comment":        {validFile + "# " + strings.Repeat("x", size) + "\n", true},
		"a text of 3 MB":          {"locals { a = \"" + strings.Repeat("x", 3<<20) + "\" }\n" + validFile, true},
		"a text of 10 MB":         {"locals { a = \"" + strings.Repeat("x", size) + "\" }\n" + validFile, false},
		"10 MB of lists":          {"locals { a = " + strings.Repeat("[", size/2) + strings.Repeat("]", size/2) + " }\n" + validFile, false},
		"10 MB of open brackets":  {"locals { a = " + strings.Repeat("(", size), false},
		"10 MB of open braces":    {"locals { a = " + strings.Repeat("{a=", size/3), false},
		"10 MB of nested blocks":  {strings.Repeat("a {\n", size/4), false},
		"10 MB of minus":          {"locals { a = " + strings.Repeat("-", size) + "1 }\n" + validFile, false},
		"10 MB of not":            {"locals { a = " + strings.Repeat("!", size) + "true }\n" + validFile, false},
		"10 MB of templates":      {"locals { a = " + strings.Repeat("\"${", size/3), false},
		"10 MB of conditions":     {"locals { a = " + strings.Repeat("true ? 1 : ", size/11) + "1 }\n" + validFile, false},
		"10 MB of errors":         {strings.Repeat("nonsense \"x\" {}\n", size/16), false},
		"a billion laughs":        {laughs(), false},
		"exponential for":         {"locals {\n a = range(1000)\n b = [for x in local.a : [for y in local.a : [for z in local.a : [for u in local.a : u]]]]\n}\n" + validFile, false},
		"file of the file itself": {"locals { a = file(\"edge.hcl\") }\n" + validFile, true},
		"file that never ends":    {"locals { a = file(\"/dev/zero\") }\n" + validFile, false},
	} {
		// One after the other: some need much memory.
		t.Run(name, func(t *testing.T) {
			file := writeFile(t, "edge.hcl", c.text)
			code, out, errs, used := runMeasured(t, "check", "-c", file)
			if (code == 0) != c.valid || code > 1 || code < 0 {
				t.Errorf("exit code %d: %s%s", code, tail(out, 500), tail(errs, 500))
			}
			if c.valid {
				return
			}
			if len(errs) > 1<<20 {
				t.Errorf("%d MB of errors for one file", len(errs)>>20)
			}
			if used.cpu > raceFactor*10*time.Second || used.memory > raceFactor*3<<29 { // 100 000 routes are three million tokens
				t.Errorf("refused with %v of CPU and %d MB", used.cpu, used.memory>>20)
			}
		})
	}
}

// laughs is a local of 10^9 elements, made from ten times ten times ten ….
func laughs() string {
	var b strings.Builder
	b.WriteString("locals {\n  a0 = \"ha\"\n")
	for i := 1; i <= 9; i++ {
		fmt.Fprintf(&b, "  a%d = \"%s\"\n", i, strings.Repeat(fmt.Sprintf("${local.a%d}", i-1), 10))
	}
	return b.String() + "}\n" + validFile
}
