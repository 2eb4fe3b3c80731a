# libshmserve: the C library, its static form, and what pkg-config and CMake find it by.
#
#   make -f native/libshmserve.mk [BUILD=build/libshmserve] [CFLAGS=...]
#   make -f native/libshmserve.mk install PREFIX=/usr/local [LIBDIR=lib] [DESTDIR=]

HERE := $(dir $(lastword $(MAKEFILE_LIST)))
BUILD ?= build/libshmserve
PREFIX ?= /usr/local
LIBDIR ?= lib
CFLAGS ?= -O2 -g
# For another machine: CC=aarch64-linux-gnu-gcc OBJCOPY=aarch64-linux-gnu-objcopy.
OBJCOPY ?= objcopy
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' $(HERE)../pyproject.toml)
ABI := $(shell sed -n 's/^\#define SHMSERVE_ABI //p' $(HERE)include/shmserve.h)

SOURCES := $(sort $(wildcard $(HERE)core/*.c $(HERE)lib/*.c))
OBJECTS := $(patsubst $(HERE)%.c,$(BUILD)/%.o,$(SOURCES))
HEADERS := $(wildcard $(HERE)core/*.h $(HERE)lib/*.h $(HERE)include/*.h)
PUBLIC := $(wildcard $(HERE)include/shmserve.h $(HERE)include/*.hpp)
FLAGS := -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -fstack-protector-strong -Wall -Wextra -I$(HERE)
LIBS := -pthread -lrt -ldl -lm
SHARED := libshmserve.so.$(ABI).$(VERSION)

all: $(BUILD)/$(SHARED) $(BUILD)/libshmserve.a

$(BUILD)/%.o: $(HERE)%.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(FLAGS) $(CFLAGS) -c $< -o $@

$(BUILD)/$(SHARED): $(OBJECTS) $(HERE)lib/libshmserve.map
	$(CC) -shared -Wl,-soname,libshmserve.so.$(ABI) -Wl,--version-script=$(HERE)lib/libshmserve.map \
		-Wl,-z,relro,-z,now -Wl,--no-undefined $(CFLAGS) $(LDFLAGS) $(OBJECTS) $(LIBS) -o $@
	ln -sf $(SHARED) $(BUILD)/libshmserve.so.$(ABI)
	ln -sf libshmserve.so.$(ABI) $(BUILD)/libshmserve.so

# One object whose only symbols are the library's own: a program has its own `call` or `publish`.
$(BUILD)/libshmserve.a: $(OBJECTS)
	$(CC) -r -nostdlib $(OBJECTS) -o $(BUILD)/libshmserve.o
	$(OBJCOPY) --wildcard --keep-global-symbol='shmserve_*' $(BUILD)/libshmserve.o
	rm -f $@
	$(AR) rcs $@ $(BUILD)/libshmserve.o

install: all
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/$(LIBDIR)/pkgconfig $(DESTDIR)$(PREFIX)/$(LIBDIR)/cmake/shmserve
	install -m 0644 $(PUBLIC) $(DESTDIR)$(PREFIX)/include/
	install -m 0644 $(BUILD)/libshmserve.a $(DESTDIR)$(PREFIX)/$(LIBDIR)/
	install -m 0755 $(BUILD)/$(SHARED) $(DESTDIR)$(PREFIX)/$(LIBDIR)/
	ln -sf $(SHARED) $(DESTDIR)$(PREFIX)/$(LIBDIR)/libshmserve.so.$(ABI)
	ln -sf libshmserve.so.$(ABI) $(DESTDIR)$(PREFIX)/$(LIBDIR)/libshmserve.so
	for file in shmserve.pc shmserveConfig.cmake shmserveConfigVersion.cmake; do \
		case $$file in *.pc) to=pkgconfig ;; *) to=cmake/shmserve ;; esac; \
		sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@LIBDIR@|$(LIBDIR)|g' -e 's|@VERSION@|$(VERSION)|g' \
			-e 's|@SHARED@|$(SHARED)|g' -e 's|@ABI@|$(ABI)|g' $(HERE)lib/$$file.in \
			> $(DESTDIR)$(PREFIX)/$(LIBDIR)/$$to/$$file || exit 1; \
	done

.PHONY: all install
